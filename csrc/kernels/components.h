/* Connected components of the foreground, as runs of rows of bits, the lowest bit first. A run is named by its number:
 * the order of runs is that of their first voxels, and the smallest run of a component stands for all. */

/* A neighbour of a voxel, one of those that come before it. */
struct neighbour {
    int plane, row, column;
};

enum { NUM_NEIGHBOURS = 13, LEFT = 0 };

static const struct neighbour neighbours[NUM_NEIGHBOURS] = {
    {0, 0, -1},  {0, -1, -1}, {0, -1, 0}, {0, -1, 1},  {-1, -1, -1}, {-1, -1, 0}, {-1, -1, 1},
    {-1, 0, -1}, {-1, 0, 0},  {-1, 0, 1}, {-1, 1, -1}, {-1, 1, 0},   {-1, 1, 1},
};

static int num_axes_between(struct neighbour a, struct neighbour b) {
    return (a.plane != b.plane) + (a.row != b.row) + (a.column != b.column);
}

/* Whether two neighbours of a voxel are neighbours themselves. */
static int are_neighbours(struct neighbour a, struct neighbour b, int connectivity) {
    const int is_near = abs(a.row - b.row) <= 1 && abs(a.column - b.column) <= 1;
    return is_near && num_axes_between(a, b) <= connectivity;
}

/* Which neighbours to look at, as bits. A voxel need not be united with neighbour j where voxels of the same class join
 * both already: a neighbour i < j that is next to j, one of detours[j]; or, if only faces count, i and the corner that
 * is next to both. */
struct plan {
    unsigned is_united, is_read;
    unsigned detours[NUM_NEIGHBOURS];
    int corners[NUM_NEIGHBOURS][NUM_NEIGHBOURS]; /* of j and i; LEFT: none is needed */
};

static int place_of_neighbour(struct neighbour wanted) {
    int j = 0;
    while (num_axes_between(neighbours[j], wanted) > 0) {
        ++j;
    }
    return j;
}

static struct plan make_plan(int connectivity) {
    struct plan plan = {.is_read = 1u << LEFT};
    const struct neighbour here = {0, 0, 0};
    for (int j = 1; j < NUM_NEIGHBOURS; ++j) {
        const struct neighbour to = neighbours[j];
        if (num_axes_between(here, to) > connectivity) {
            continue;
        }
        plan.is_united |= 1u << j;
        plan.is_read |= 1u << j;
        for (int i = 0; i < j; ++i) {
            const struct neighbour via = neighbours[i];
            if (num_axes_between(here, via) > connectivity) {
                continue;
            }
            if (are_neighbours(via, to, connectivity)) {
                plan.detours[j] |= 1u << i;
            } else if (connectivity == 1) {
                const struct neighbour corner = {via.plane + to.plane, via.row + to.row, via.column + to.column};
                plan.detours[j] |= 1u << i;
                plan.corners[j][i] = place_of_neighbour(corner);
                plan.is_read |= 1u << plan.corners[j][i];
            }
        }
    }
    return plan;
}

/* ---- runs ---- */

static int64_t rows_of_sample(const struct segloss_components* a) {
    return a->sizes[SEGLOSS_PLANES] * a->sizes[SEGLOSS_ROWS];
}

static uint64_t bits_of_bytes(const uint8_t* bytes) {
    uint64_t word = 0;
    for (int i = 0; i < 64; i += 8) {
        word |= equal_bytes(bytes + i, 1) << i;
    }
    return word;
}

/* Where the class is another one than in the voxel before, in all lanes of a block. */
static void find_changes(uint8_t* changes, const int32_t* label, int32_t before) {
    changes[0] = label[0] != before;
    for (int i = 1; i < SEGLOSS_BLOCK; ++i) {
        changes[i] = label[i] != label[i - 1];
    }
}

static int64_t components_runs(const struct segloss_components* a, int64_t begin, int64_t end, int64_t* num_runs) {
    const int64_t columns = a->sizes[SEGLOSS_COLUMNS];
    ALIGNED int32_t label[SEGLOSS_BLOCK];
    ALIGNED uint8_t inside[SEGLOSS_BLOCK], changes[SEGLOSS_BLOCK];
    int64_t runs = 0;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t first = row * a->words, position = (a->sample * rows_of_sample(a) + row) * columns;
        uint64_t before = 0; /* of the foreground */
        int32_t class_before = 0;
        for (int64_t w = 0; w < a->words; ++w) {
            const int lane = w % 2 == 0 ? 0 : 64;
            if (lane == 0 && 64 * w < columns) {
                const struct block b = block_at(&a->positions, position + 64 * w, position + columns);
                const int bad = read_labels(label, &a->labels, &a->label_table, &b, INT32_MAX, a->ignore_index);
                if (bad >= 0) {
                    return b.begin + bad;
                }
                for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                    inside[i] = label[i] > 0;
                }
                if (a->per_class) {
                    find_changes(changes, label, class_before);
                    class_before = label[SEGLOSS_BLOCK - 1];
                    memcpy(a->components + row * columns + 64 * w, label, (size_t)b.count * sizeof *label);
                }
            }
            const uint64_t foreground = 64 * w < columns ? bits_of_bytes(inside + lane) : 0;
            const uint64_t is_start = a->per_class ? bits_of_bytes(changes + lane) : ~(foreground << 1 | before >> 63);
            a->foreground[first + w] = before = foreground;
            a->starts[first + w] = foreground & is_start;
            a->runs_before[first + w] = (int32_t)runs;
            runs += count_bits(foreground & is_start);
        }
    }
    *num_runs = runs;
    return -1;
}

static int32_t run_at(const struct segloss_components* a, int64_t row, int64_t column) {
    const uint64_t unsigned_column = (uint64_t)column; /* whose quotient and remainder are a shift and a mask */
    const int64_t w = row * a->words + (int64_t)(unsigned_column / 64);
    return a->runs_before[w] + count_bits(a->starts[w] & ~(uint64_t)0 >> (63 - unsigned_column % 64)) - 1;
}

/* ---- unions ---- */

/* Of two runs, the one whose parent is larger gets the other's parent, and so on with its former parent, until both
 * have the same (Rem's algorithm; Patwary, Blair and Manne 2010). */
static void unite(int32_t* parents, int32_t one, int32_t other) {
    while (parents[one] != parents[other]) {
        const int32_t larger = parents[one] > parents[other] ? one : other, smaller = larger == one ? other : one;
        const int32_t parent = parents[larger];
        parents[larger] = parents[smaller];
        if (parent == larger) {
            return;
        }
        one = parent;
        other = smaller;
    }
}

/* The word of a row's foreground whose bit i is that of column 64w + i + shift. */
static uint64_t shifted_word(const uint64_t* words, int shift) {
    return shift < 0 ? words[0] << 1 | words[-1] >> 63 : shift > 0 ? words[0] >> 1 | words[1] << 63 : words[0];
}

static uint64_t of_equal_class(const struct segloss_components* a, int64_t row, int64_t other, int64_t w, int shift) {
    const int64_t columns = a->sizes[SEGLOSS_COLUMNS], left = columns - 64 * w - (shift > 0);
    const int32_t *here = a->components + row * columns + 64 * w, *there = a->components + other * columns + 64 * w;
    ALIGNED uint8_t is_equal[64] = {0};
    for (int i = w == 0 && shift < 0; i < smaller(left, 64); ++i) {
        is_equal[i] = here[i] == there[i + shift];
    }
    return bits_of_bytes(is_equal);
}

/* The voxels of a word of a row that have a neighbour of their class, by neighbour. */
struct equals {
    uint64_t of[NUM_NEIGHBOURS];
};

static uint64_t joined_by_detours(const struct plan* plan, const struct equals* equals, int j) {
    uint64_t joined = 0;
    for (unsigned detours = plan->detours[j]; detours; detours &= detours - 1) {
        const int i = __builtin_ctz(detours), corner = plan->corners[j][i];
        joined |= equals->of[i] & (corner == LEFT ? ~(uint64_t)0 : equals->of[corner]);
    }
    return joined;
}

/* The row of each neighbour; -1 outside the sample and outside [low, high). */
static void find_rows(const struct segloss_components* a, int64_t row, int64_t low, int64_t high, int64_t* rows) {
    const int64_t height = a->sizes[SEGLOSS_ROWS], plane = row / height, in_plane = row % height;
    for (int j = 0; j < NUM_NEIGHBOURS; ++j) {
        const int64_t z = plane + neighbours[j].plane, y = in_plane + neighbours[j].row, other = z * height + y;
        rows[j] = y >= 0 && y < height && other >= low && other < high ? other : -1;
    }
}

/* Whether a run starts in a word of a row, or in one of the columns that the voxels of the word have as neighbours: all
 * others are united with their neighbours where their runs start. */
static int may_unite(const struct segloss_components* a, int64_t row, int64_t other, int64_t w) {
    const uint64_t* of_other = a->starts + other * a->words + w;
    return (a->starts[row * a->words + w] | of_other[0] | of_other[1] << 63) != 0;
}

static void unite_word(const struct segloss_components* a, const struct plan* plan, const int64_t* rows, int64_t row,
                       int64_t w) {
    const uint64_t foreground = a->foreground[row * a->words + w];
    struct equals equals = {{foreground & ~a->starts[row * a->words + w]}};
    for (int j = LEFT + 1; foreground && j < NUM_NEIGHBOURS; ++j) {
        if (!(plan->is_read >> j & 1) || rows[j] < 0 || !may_unite(a, row, rows[j], w)) {
            continue;
        }
        const int shift = neighbours[j].column, is_united = (int)(plan->is_united >> j & 1);
        const uint64_t both = foreground & shifted_word(a->foreground + rows[j] * a->words + w, shift);
        uint64_t found = is_united ? both & ~joined_by_detours(plan, &equals, j) : both;
        equals.of[j] = !a->per_class ? both : found ? both & of_equal_class(a, row, rows[j], w, shift) : 0;
        for (found &= is_united ? equals.of[j] : 0; found; found &= found - 1) {
            const int64_t column = 64 * w + __builtin_ctzll(found);
            unite(a->parents, run_at(a, row, column), run_at(a, rows[j], column + shift));
        }
    }
}

static void components_unite(const struct segloss_components* a, int64_t begin, int64_t end, int64_t low,
                             int64_t high) {
    const struct plan plan = make_plan(a->connectivity);
    for (int64_t row = begin; row < end; ++row) {
        int64_t rows[NUM_NEIGHBOURS];
        find_rows(a, row, low, high, rows);
        for (int64_t w = 0; w < a->words - 1; ++w) {
            unite_word(a, &plan, rows, row, w);
        }
    }
}

/* ---- numbers ---- */

static void components_start(const struct segloss_components* a, int64_t begin, int64_t end, int32_t first_run,
                             int32_t end_run) {
    for (int64_t w = begin * a->words; w < end * a->words; ++w) {
        a->runs_before[w] += first_run;
    }
    for (int32_t run = first_run; run < end_run; ++run) {
        a->parents[run] = run;
    }
}

/* A run that comes before has its number already. */
static int32_t components_number(int32_t* parents, int32_t num_runs) {
    int32_t count = 0;
    for (int32_t run = 0; run < num_runs; ++run) {
        parents[run] = parents[run] == run ? ++count : parents[parents[run]];
    }
    return count;
}

static void fill(int32_t* to, int begin, int end, int32_t value) {
    for (int i = begin; i < end; ++i) {
        to[i] = value;
    }
}

static void write_few_runs(const struct segloss_components* a, int64_t at, int count, int32_t* to) {
    const uint64_t foreground = a->foreground[at], starts = a->starts[at];
    int32_t run = a->runs_before[at] - 1;
    fill(to, 0, count, 0);
    for (uint64_t left = foreground; left;) {
        const int begin = __builtin_ctzll(left);
        const uint64_t stops = (starts | ~foreground) & ~(uint64_t)1 << begin;
        const int end = stops ? __builtin_ctzll(stops) : 64;
        run += (int32_t)(starts >> begin & 1);
        fill(to, begin, end, a->parents[run]);
        left = end < 64 ? foreground & ~(uint64_t)0 << end : 0;
    }
}

static void write_many_runs(const struct segloss_components* a, int64_t at, int count, int32_t* to) {
    int32_t run = a->runs_before[at] - 1;
    for (int i = 0; i < count; ++i) { /* without a branch */
        const int32_t is_inside = -(int32_t)(a->foreground[at] >> i & 1);
        run += (int32_t)(a->starts[at] >> i & 1);
        to[i] = a->parents[run & is_inside] & is_inside;
    }
}

static void components_write(const struct segloss_components* a, int64_t begin, int64_t end) {
    enum { FEW_RUNS = 6 };
    const int64_t columns = a->sizes[SEGLOSS_COLUMNS];
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t w = 0; w < a->words - 1; ++w) {
            const int64_t at = row * a->words + w;
            const int count = smaller(columns - 64 * w, 64);
            int32_t* to = a->components + row * columns + 64 * w;
            if (count_bits(a->starts[at]) <= FEW_RUNS) {
                write_few_runs(a, at, count, to);
            } else {
                write_many_runs(a, at, count, to);
            }
        }
    }
}
