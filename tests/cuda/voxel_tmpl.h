/* Cross entropy of one voxel and its gradient, computed by voxel.h in REAL for v = 1. */

static REAL FN(loss_of_voxel)(const struct problem* problem, int64_t p, long double* grad) {
    const struct segloss_cross_entropy* a = problem->args;
    const int has_labels = a->target_kind == SEGLOSS_LABELS;
    const int64_t label = has_labels ? (int64_t)get(problem->target, p, 0) : 0;
    const REAL gamma = (REAL)a->gamma;
    struct FN(softmax) s;
    FN(start_softmax)(&s);
    for (int64_t c = 0; c < a->num_classes; ++c) {
        FN(add_logit)(&s, (REAL)get(problem->logits, p, c));
        if ((c + 1) % VOXEL_GROUP == 0 || c + 1 == a->num_classes) {
            FN(finish_group)(&s);
        }
    }
    FN(finish_softmax)(&s);
    for (int64_t c = 0; c < a->num_classes && !has_labels; ++c) {
        FN(add_factor)(&s, (REAL)get(problem->logits, p, c), (REAL)reference_factor(problem, p, c));
    }
    const REAL x_y = (REAL)get(problem->logits, p, label);
    const REAL w = has_labels ? (REAL)reference_factor(problem, p, label) : 0;
    const REAL slope = gamma == 0 ? w : w * FN(focal_factor)(&s, x_y, gamma, 1);
    for (int64_t c = 0; c < a->num_classes; ++c) {
        const REAL q = has_labels ? 0 : (REAL)reference_factor(problem, p, c);
        const REAL x = (REAL)get(problem->logits, p, c);
        const REAL share = FN(softmax_share)(&s);
        grad[c] = has_labels ? slope * FN(label_grad)(&s, share, x, c == label)
                             : FN(softmax_grad)(&s, share, x, q, (REAL)s.mass);
    }
    return FN(softmax_loss)(&s, x_y, gamma == 0 ? w : w * FN(focal_factor)(&s, x_y, gamma, 0));
}

/* Checks the binary functions at one point against their formulas. */
static void FN(check_binary)(const struct tolerance* tolerance, REAL x, REAL h, REAL gamma) {
    const long double p = sigmoid(x), q = sigmoid(-(long double)x);
    const long double positive = h * product(powl(q, gamma), softplus(-(long double)x));
    const long double negative = (1 - h) * product(powl(p, gamma), softplus(x));
    const long double falling = h * powl(q, gamma) * (gamma * product(p, softplus(-(long double)x)) + q);
    const long double rising = (1 - h) * powl(p, gamma) * (gamma * product(q, softplus(x)) + p);
    snprintf(current_case, sizeof current_case, "voxel: binary, x = %g, h = %g, gamma = %g", (double)x, (double)h,
             (double)gamma);
    check_near(tolerance, FN(sigmoid)(x), p, p, "sigmoid", -1, -1);
    check_near(tolerance, FN(binary_loss)(x, h, 1 - h, gamma), positive + negative, positive + negative, "loss", -1,
               -1);
    check_near(tolerance, FN(binary_grad)(x, h, 1 - h, gamma), rising - falling, rising + falling, "grad", -1, -1);
}

#undef REAL
#undef FN
