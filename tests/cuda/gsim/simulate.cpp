// The launchers on a simulated GPU against plain C++ in double. Prints a line before each launcher, and one for each of
// its results.
//
// simulate LOGITS LABELS LAYOUT CLASSES VOXELS VARIANT, such as: simulate bfloat16 uint8 channels_last 19 2056 focal
// All variants but "plain" have ignored voxels; those without weights and focal factors refuse a label, too.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "launchers.h"

namespace {

constexpr int64_t SAMPLES = 2;
constexpr int64_t GARBAGE = 0xA5;
constexpr int IGNORED_EVERY = 17; // voxels

int failures = 0;

void report(const std::string& what, double error, double allowed) {
    const bool is_right = error <= allowed;
    failures += !is_right;
    printf("RESULT %s: error %.2g, allowed %.2g: %s\n", what.c_str(), error, allowed, is_right ? "right" : "WRONG");
}

void report(const std::string& what, bool is_right) { report(what, is_right ? 0 : 1, 0); }

// ---- numbers in memory ----------------------------------------------------------------------------------------------

using Bytes = std::vector<unsigned char>;

float rounded_to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

void encode(double x, segloss_dtype dtype, unsigned char* to) {
    const auto number = static_cast<float>(x);
    const auto integer = static_cast<int64_t>(x);
    const auto size = static_cast<size_t>(segloss_dtype_size(dtype));
    if (dtype == SEGLOSS_BFLOAT16) {
        const float rounded = rounded_to_bfloat16(number);
        memcpy(to, reinterpret_cast<const unsigned char*>(&rounded) + 2, size);
    } else if (dtype == SEGLOSS_FLOAT64) {
        memcpy(to, &x, size);
    } else {
        memcpy(to, dtype == SEGLOSS_FLOAT32 ? static_cast<const void*>(&number) : &integer, size);
    }
}

// Of floating-point dtypes.
double decode(const unsigned char* from, segloss_dtype dtype) {
    if (dtype == SEGLOSS_FLOAT64) {
        double x;
        memcpy(&x, from, sizeof x);
        return x;
    }
    float x = 0;
    const auto size = static_cast<size_t>(segloss_dtype_size(dtype));
    memcpy(reinterpret_cast<unsigned char*>(&x) + sizeof x - size, from, size);
    return static_cast<double>(x);
}

void* allocate(size_t size) {
    const Bytes garbage(size, GARBAGE);
    void* device = nullptr;
    if (cudaMalloc(&device, size) != cudaSuccess) {
        printf("no memory\n");
        exit(3);
    }
    cudaMemcpy(device, garbage.data(), size, cudaMemcpyHostToDevice);
    return device;
}

// Copies count numbers, the i-th of which is value(i), to the device.
template <typename Value> void* upload(int64_t count, segloss_dtype dtype, const Value& value) {
    const int64_t size = segloss_dtype_size(dtype);
    Bytes bytes(static_cast<size_t>(count * size));
    for (int64_t i = 0; i < count; ++i) {
        encode(static_cast<double>(value(i)), dtype, &bytes[static_cast<size_t>(i * size)]);
    }
    void* const device = allocate(bytes.size());
    cudaMemcpy(device, bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    return device;
}

std::vector<double> download(const void* device, int64_t count, segloss_dtype dtype) {
    const int64_t size = segloss_dtype_size(dtype);
    Bytes bytes(static_cast<size_t>(count * size));
    std::vector<double> values(static_cast<size_t>(count));
    cudaMemcpy(bytes.data(), device, bytes.size(), cudaMemcpyDeviceToHost);
    for (int64_t i = 0; i < count; ++i) {
        values[static_cast<size_t>(i)] = decode(&bytes[static_cast<size_t>(i * size)], dtype);
    }
    return values;
}

// ---- a case ---------------------------------------------------------------------------------------------------------

struct Case {
    segloss_dtype logits_dtype, label_dtype;
    bool is_planar, is_weighted;
    int64_t num_classes, size, ignore_index; // size: voxels of a sample
    double gamma;

    std::vector<double> logits; // [sample][voxel][class], as the logits' dtype has them
    std::vector<int64_t> labels;
    std::vector<double> class_weight, voxel_weight;

    int64_t num_voxels() const { return SAMPLES * size; }
    double logit(int64_t voxel, int64_t c) const { return logits[static_cast<size_t>(voxel * num_classes + c)]; }
    int64_t label(int64_t voxel) const { return labels[static_cast<size_t>(voxel)]; }
    bool counts(int64_t voxel) const { return label(voxel) != ignore_index; }
    double weight_of(int64_t voxel) const { return counts(voxel) ? voxel_weight[static_cast<size_t>(voxel)] : 0; }
    double weight_of_class(int64_t c) const { return class_weight[static_cast<size_t>(c)]; }
};

segloss_dtype dtype_of(const std::string& name) {
    static const char* const names[] = {"float32", "float64", "float16", "bfloat16", "uint8",  "int8",
                                        "uint16",  "int16",   "uint32",  "int32",    "uint64", "int64"};
    int dtype = 0;
    while (name != names[dtype]) {
        ++dtype;
    }
    return static_cast<segloss_dtype>(dtype);
}

Case draw_case(char** argv) {
    uint64_t state = 1;
    const auto draw = [&] {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<double>(state >> 40) / (1 << 24);
    };
    const std::string layout = argv[3], variant = argv[6];
    Case c{};
    c.logits_dtype = dtype_of(argv[1]);
    c.label_dtype = dtype_of(argv[2]);
    c.is_planar = layout == "planar";
    c.num_classes = atoll(argv[4]);
    c.size = atoll(argv[5]);
    c.is_weighted = variant == "weighted";
    c.gamma = variant == "focal" ? 2 : 0;
    const bool has_ignored = variant != "plain";
    c.ignore_index = c.label_dtype == SEGLOSS_UINT8 ? 255 : -100;
    unsigned char stored[8];
    for (int64_t voxel = 0; voxel < c.num_voxels(); ++voxel) {
        const bool is_confident = voxel % 5 == 0;
        const auto label = static_cast<int64_t>(draw() * static_cast<double>(c.num_classes));
        c.labels.push_back(has_ignored && voxel % IGNORED_EVERY == 3 ? c.ignore_index : label);
        c.voxel_weight.push_back(c.is_weighted ? static_cast<double>(static_cast<float>(draw())) : 1);
        for (int64_t k = 0; k < c.num_classes; ++k) {
            const bool is_label = k == c.labels.back();
            encode(draw() * 8 - 4 + (is_confident && is_label ? 20 : 0), c.logits_dtype, stored);
            c.logits.push_back(decode(stored, c.logits_dtype));
        }
    }
    for (int64_t k = 0; k < c.num_classes; ++k) {
        c.class_weight.push_back(c.is_weighted ? static_cast<double>(static_cast<float>(draw() + 0.5)) : 1);
    }
    return c;
}

// The element of a tensor with classes that is at `index` in memory.
struct Element {
    int64_t voxel, c;

    Element(const Case& of, int64_t index) {
        const int64_t sample = index / (of.size * of.num_classes), rest = index % (of.size * of.num_classes);
        voxel = sample * of.size + (of.is_planar ? rest % of.size : rest / of.num_classes);
        c = of.is_planar ? rest / of.size : rest % of.num_classes;
    }
};

// ---- the formulas of kernels.h, for one voxel -----------------------------------------------------------------------

double power(double x, double gamma) { return gamma == 0 ? 1 : pow(x, gamma); }

// (1 - p)^gamma * -log p, and its derivative times p. 1 - p is given, as rounding would lose it.
double focal_loss(double p, double not_p, double gamma) { return power(not_p, gamma) * -log(p); }
double focal_slope(double p, double not_p, double gamma) {
    const double of_power = gamma == 0 ? 0 : gamma * power(not_p, gamma - 1) * p * log(p);
    return of_power - power(not_p, gamma);
}

struct Probabilities {
    std::vector<double> p, not_p;

    Probabilities(const Case& c, int64_t voxel, segloss_activation activation) {
        std::vector<double> exps;
        double sum = 0;
        for (int64_t k = 0; k < c.num_classes; ++k) {
            exps.push_back(exp(c.logit(voxel, k)));
            sum += exps.back();
        }
        for (size_t k = 0; k < exps.size(); ++k) {
            const double x = c.logit(voxel, static_cast<int64_t>(k));
            double others = 0;
            for (size_t j = 0; j < exps.size(); ++j) {
                others += j == k ? 0 : exps[j];
            }
            const bool is_softmax = activation == SEGLOSS_SOFTMAX;
            p.push_back(is_softmax ? exps[k] / sum : 1 / (1 + exp(-x)));
            not_p.push_back(is_softmax ? others / sum : 1 / (1 + exp(x)));
        }
    }
};

struct Expected {
    double loss[SAMPLES] = {}, weight[SAMPLES] = {};
    std::vector<double> stats[SEGLOSS_STATISTICS]; // [sample][class]
    std::vector<double> of_loss, of_stats;         // gradients in the order of the logits; loss: of the sum
};

// The gradient of the statistics with respect to the sums of v p g and of v p.
double by_intersection(int64_t i) { return 0.01 * static_cast<double>(i % 7 - 3); }
double by_prediction(int64_t i) { return 0.005 * static_cast<double>(i % 5 - 1); }

void expect_voxel(const Case& c, int64_t voxel, segloss_activation activation, Expected* e) {
    const bool is_softmax = activation == SEGLOSS_SOFTMAX;
    const int64_t sample = voxel / c.size, label = c.label(voxel);
    const double v = c.weight_of(voxel);
    const Probabilities of(c, voxel, activation);
    std::vector<double> slopes;
    double mean = 0;
    for (int64_t k = 0; k < c.num_classes && v != 0; ++k) {
        const auto at = static_cast<size_t>(sample * c.num_classes + k);
        const double p = of.p[static_cast<size_t>(k)];
        e->stats[SEGLOSS_INTERSECTION][at] += k == label ? v * p : 0;
        e->stats[SEGLOSS_PREDICTION][at] += v * p;
        e->stats[SEGLOSS_TARGET][at] += k == label ? v : 0;
        slopes.push_back((k == label ? by_intersection(static_cast<int64_t>(at)) : 0) +
                         by_prediction(static_cast<int64_t>(at)));
        mean += p * slopes.back();
    }
    for (int64_t k = 0; k < c.num_classes; ++k) {
        if (v == 0) {
            e->of_loss.push_back(0);
            e->of_stats.push_back(0);
            continue;
        }
        const auto index = static_cast<size_t>(k), label_index = static_cast<size_t>(label);
        const double p = of.p[index], not_p = of.not_p[index], w = v * c.weight_of_class(is_softmax ? label : k);
        if (is_softmax) {
            const double slope = focal_slope(of.p[label_index], of.not_p[label_index], c.gamma);
            e->loss[sample] += k == label ? w * focal_loss(p, not_p, c.gamma) : 0;
            e->of_loss.push_back(w * slope * (k == label ? not_p : -p));
            e->of_stats.push_back(v * p * (slopes[index] - mean));
        } else {
            const double one = k == label ? p : not_p, other = k == label ? not_p : p;
            e->loss[sample] += w * focal_loss(one, other, c.gamma);
            e->of_loss.push_back(w * focal_slope(one, other, c.gamma) * (k == label ? other : -other));
            e->of_stats.push_back(v * p * not_p * slopes[index]);
        }
    }
    e->weight[sample] += !is_softmax ? v * static_cast<double>(c.num_classes)
                         : v == 0    ? 0
                                     : v * c.weight_of_class(label);
}

Expected expect(const Case& c, segloss_activation activation) {
    Expected e;
    for (auto& stats : e.stats) {
        stats.assign(static_cast<size_t>(SAMPLES * c.num_classes), 0);
    }
    for (int64_t voxel = 0; voxel < c.num_voxels(); ++voxel) {
        expect_voxel(c, voxel, activation, &e);
    }
    return e;
}

// ---- the launchers' arguments and results ---------------------------------------------------------------------------

void give_classes(const Case& c, segloss_tensor* t) {
    t->dtype = c.logits_dtype;
    t->stride_class = c.is_planar ? c.size : 1;
    t->strides[0] = c.size * c.num_classes;
    t->strides[1] = c.is_planar ? 1 : c.num_classes;
}

void give_voxels(const Case& c, segloss_dtype dtype, segloss_tensor* t) {
    t->dtype = dtype;
    t->strides[0] = c.size;
    t->strides[1] = 1;
}

segloss_cross_entropy arguments_of(const Case& c) {
    segloss_cross_entropy a{};
    a.positions = {2, {SAMPLES, c.size}};
    a.num_classes = c.num_classes;
    a.ignore_index = c.ignore_index;
    a.gamma = c.gamma;
    a.target_kind = SEGLOSS_LABELS;
    a.grad_scale = 1;
    give_classes(c, &a.logits);
    give_classes(c, &a.grad_logits);
    give_voxels(c, c.label_dtype, &a.target);
    a.logits.data = upload(c.num_voxels() * c.num_classes, c.logits_dtype, [&](int64_t i) {
        const Element at(c, i);
        return c.logit(at.voxel, at.c);
    });
    a.target.data = upload(c.num_voxels(), c.label_dtype, [&](int64_t i) { return c.label(i); });
    if (c.is_weighted) {
        give_voxels(c, SEGLOSS_FLOAT32, &a.voxel_weight);
        a.voxel_weight.data =
            upload(c.num_voxels(), SEGLOSS_FLOAT32, [&](int64_t i) { return c.voxel_weight[static_cast<size_t>(i)]; });
        a.class_weight = upload(c.num_classes, SEGLOSS_FLOAT32, [&](int64_t k) { return c.weight_of_class(k); });
    }
    return a;
}

// A launch and what it writes: all memory is new, and holds garbage.
struct Launch {
    const Case& of;
    segloss_cuda_call call{};
    segloss_cuda_sums sums{};
    void* grad;

    Launch(const char* launcher, const Case& c, int64_t num_samples) : of(c) {
        const int64_t num_sums = num_samples * c.num_classes * 8;
        const segloss_refusal nothing{};
        call.end = c.num_voxels();
        call.num_samples = num_samples;
        call.workspace = allocate(segloss_cuda_workspace(call.end, num_samples, c.num_classes));
        call.refusal = static_cast<segloss_refusal*>(allocate(sizeof nothing));
        cudaMemcpy(call.refusal, &nothing, sizeof nothing, cudaMemcpyHostToDevice);
        sums.loss_dtype = SEGLOSS_FLOAT64;
        sums.loss = allocate(8 * SAMPLES);
        sums.weight = static_cast<double*>(allocate(8 * SAMPLES));
        for (double** stats : {&sums.intersection, &sums.prediction, &sums.target}) {
            *stats = num_samples > 1 ? static_cast<double*>(allocate(static_cast<size_t>(num_sums))) : nullptr;
        }
        grad = allocate(static_cast<size_t>(num_elements() * segloss_dtype_size(c.logits_dtype)));
        printf("LAUNCH %s\n", launcher);
        fflush(stdout);
    }

    int64_t num_elements() const { return of.num_voxels() * of.num_classes; }

    // Waits for the launch, which returned `error`.
    void finish(int error) const {
        const cudaError_t waited = cudaDeviceSynchronize();
        if (error != 0 || waited != cudaSuccess) {
            report("launch", false);
        }
    }

    segloss_refusal refusal() const {
        segloss_refusal r;
        cudaMemcpy(&r, call.refusal, sizeof r, cudaMemcpyDeviceToHost);
        return r;
    }

    void check_sums(const double* loss, const double* weight, int64_t count) const {
        const auto losses = download(sums.loss, count, SEGLOSS_FLOAT64);
        const auto weights = download(sums.weight, count, SEGLOSS_FLOAT64);
        double of_loss = 0, of_weight = 0;
        for (int64_t n = 0; n < count; ++n) {
            of_loss = fmax(of_loss, fabs(losses[static_cast<size_t>(n)] / loss[n] - 1));
            of_weight = fmax(of_weight, fabs(weights[static_cast<size_t>(n)] / weight[n] - 1));
        }
        report("loss", of_loss, 1e-6);
        report("weight", of_weight, 1e-6);
    }

    void check_stats(const Expected& e) const {
        const char* const names[] = {"intersection", "prediction", "target"};
        const double* const got[] = {sums.intersection, sums.prediction, sums.target};
        for (int k = 0; k < SEGLOSS_STATISTICS; ++k) {
            const auto values = download(got[k], SAMPLES * of.num_classes, SEGLOSS_FLOAT64);
            double error = 0;
            for (size_t i = 0; i < values.size(); ++i) {
                error = fmax(error, fabs(values[i] - e.stats[k][i]) / fmax(1, fabs(e.stats[k][i])));
            }
            report(names[k], error, 2e-6);
        }
    }

    // The errors relative to the largest gradient, or for 16 bits to each one. Those of voxel `refused` are nan.
    void check_grad(const std::function<double(size_t)>& expected, int64_t refused = -1) const {
        const auto got = download(grad, num_elements(), of.logits_dtype);
        double error = 0, largest = 0;
        bool is_nan_there = true;
        for (int64_t i = 0; i < num_elements(); ++i) {
            const Element at(of, i);
            const double want = expected(static_cast<size_t>(at.voxel * of.num_classes + at.c));
            const double x = got[static_cast<size_t>(i)], rounding = of.logits_dtype == SEGLOSS_FLOAT32 ? 0 : 0x1p-8;
            largest = fmax(largest, fabs(want));
            if (at.voxel == refused) {
                is_nan_there = is_nan_there && std::isnan(x);
            } else {
                error = std::isnan(x) ? INFINITY : fmax(error, fabs(x - want) - rounding * fabs(want));
            }
        }
        report("gradient", error / largest, 2e-6);
        if (refused >= 0) {
            report("gradient of the refused voxel is nan", is_nan_there);
        }
    }

    void check_refusal(int64_t position) const {
        const auto r = refusal();
        report("refusal", r.count == 1 && r.position == position && r.label == of.label(position) &&
                              r.value == static_cast<double>(of.label(position)) && r.what == SEGLOSS_OF_TARGET);
    }
};

// ---- cross entropy --------------------------------------------------------------------------------------------------

void test_cross_entropy(const Case& c, const segloss_cross_entropy& args) {
    const auto e = expect(c, SEGLOSS_SOFTMAX);
    double loss = 0, weight = 0;
    for (int n = 0; n < SAMPLES; ++n) {
        loss += e.loss[n];
        weight += e.weight[n];
    }
    auto a = args;
    a.grad_logits.data = nullptr;

    Launch of_weight("cross_entropy_weight", c, 1);
    of_weight.sums.loss = nullptr;
    of_weight.finish(segloss_cuda_cross_entropy_weight(&a, &of_weight.call, &of_weight.sums));
    const double got = download(of_weight.sums.weight, 1, SEGLOSS_FLOAT64)[0];
    report("weight", fabs(got / weight - 1), 1e-6);

    Launch alone("cross_entropy_forward", c, 1);
    alone.finish(segloss_cuda_cross_entropy_forward(&a, &alone.call, nullptr, &alone.sums));
    alone.check_sums(&loss, &weight, 1);
    report("no refusal", alone.refusal().count == 0);

    Launch mean("cross_entropy_forward with the gradient", c, 1);
    a.grad_logits.data = mean.grad;
    mean.sums.reduction = SEGLOSS_MEAN;
    mean.finish(segloss_cuda_cross_entropy_forward(&a, &mean.call, of_weight.sums.weight, &mean.sums));
    const double mean_loss = loss / weight;
    mean.check_sums(&mean_loss, &weight, 1);
    mean.check_grad([&](size_t i) { return e.of_loss[i] / weight; });

    Launch backward("cross_entropy_backward", c, 1);
    a.grad_logits.data = backward.grad;
    a.grad_loss.dtype = SEGLOSS_FLOAT32;
    a.grad_loss.data = upload(1, SEGLOSS_FLOAT32, [](int64_t) { return 3; });
    backward.finish(segloss_cuda_cross_entropy_backward(&a, &backward.call, nullptr, 0));
    backward.check_grad([&](size_t i) { return 3 * e.of_loss[i]; });

    Launch unneeded("cross_entropy_backward unless one", c, 1);
    a.grad_logits.data = backward.grad;
    a.grad_loss.data = upload(1, SEGLOSS_FLOAT32, [](int64_t) { return 1; });
    unneeded.grad = backward.grad;
    unneeded.finish(segloss_cuda_cross_entropy_backward(&a, &unneeded.call, of_weight.sums.weight, 1));
    unneeded.check_grad([&](size_t i) { return 3 * e.of_loss[i]; }); // what backward wrote
}

void test_refusal(Case c) {
    const int64_t position = c.size + 40;
    const auto accepted = expect(c, SEGLOSS_SOFTMAX);
    c.labels[static_cast<size_t>(position)] = c.num_classes;
    auto a = arguments_of(c);
    Launch refused("cross_entropy_forward of a refused label", c, 1);
    a.grad_logits.data = refused.grad;
    refused.finish(segloss_cuda_cross_entropy_forward(&a, &refused.call, nullptr, &refused.sums));
    refused.check_refusal(position);
    report("loss is nan", std::isnan(download(refused.sums.loss, 1, SEGLOSS_FLOAT64)[0]));
    refused.check_grad([&](size_t i) { return accepted.of_loss[i]; }, position);
}

// ---- soft statistics ------------------------------------------------------------------------------------------------

void test_soft_stats(const Case& c, const segloss_cross_entropy& args, segloss_activation activation) {
    const std::string name = activation == SEGLOSS_SOFTMAX ? "softmax" : "sigmoid";
    const auto e = expect(c, activation);
    segloss_soft_stats s{};
    s.voxels = args;
    s.voxels.grad_logits.data = nullptr;
    s.activation = activation;

    if (!c.is_weighted && c.gamma == 0) {
        Launch alone(("soft_stats_forward of a " + name).c_str(), c, SAMPLES);
        alone.finish(segloss_cuda_soft_stats_forward(&s, &alone.call, nullptr, &alone.sums));
        alone.check_stats(e);
    }

    s.with_loss = 1;
    Launch forward(("soft_stats_forward of a " + name + " with losses").c_str(), c, SAMPLES);
    forward.finish(segloss_cuda_soft_stats_forward(&s, &forward.call, nullptr, &forward.sums));
    forward.check_stats(e);
    forward.check_sums(e.loss, e.weight, SAMPLES);

    const auto of_classes = [&](double (*value)(int64_t)) {
        return upload(SAMPLES * c.num_classes, SEGLOSS_FLOAT32, value);
    };
    Launch backward(("soft_stats_backward of a " + name + " with losses").c_str(), c, SAMPLES);
    s.voxels.grad_logits.data = backward.grad;
    s.voxels.grad_loss.dtype = SEGLOSS_FLOAT32;
    s.voxels.grad_loss.strides[0] = 1;
    s.voxels.grad_loss.data = upload(SAMPLES, SEGLOSS_FLOAT32, [](int64_t n) { return n == 0 ? 0.25 : 0.5; });
    s.grad_intersection = of_classes(by_intersection);
    s.grad_prediction = of_classes(by_prediction);
    const auto grad_loss = [&](size_t i) { return static_cast<int64_t>(i) / c.num_classes < c.size ? 0.25 : 0.5; };
    backward.finish(segloss_cuda_soft_stats_backward(&s, &backward.call, nullptr, 0));
    backward.check_grad([&](size_t i) { return e.of_stats[i] + grad_loss(i) * e.of_loss[i]; });

    if (!c.is_weighted && c.gamma == 0) {
        s.with_loss = 0;
        Launch of_stats(("soft_stats_backward of a " + name).c_str(), c, SAMPLES);
        s.voxels.grad_logits.data = of_stats.grad;
        s.voxels.grad_loss.data = nullptr;
        of_stats.finish(segloss_cuda_soft_stats_backward(&s, &of_stats.call, nullptr, 0));
        of_stats.check_grad([&](size_t i) { return e.of_stats[i]; });
    }
}

// ---- counts ---------------------------------------------------------------------------------------------------------

int64_t predicted(const Case& c, int64_t voxel) {
    int64_t best = 0;
    for (int64_t k = 1; k < c.num_classes; ++k) {
        best = c.logit(voxel, k) > c.logit(voxel, best) ? k : best;
    }
    return best;
}

void test_confusion(const Case& c, const segloss_cross_entropy& a) {
    const int64_t num_cells = c.num_classes * c.num_classes + 1;
    std::vector<int64_t> expected(static_cast<size_t>(num_cells)), got(expected);
    for (int64_t voxel = 0; voxel < c.num_voxels(); ++voxel) {
        if (c.counts(voxel)) {
            ++expected[static_cast<size_t>(c.label(voxel) * c.num_classes + predicted(c, voxel))];
        }
    }
    segloss_confusion of{};
    of.positions = a.positions;
    of.num_classes = a.num_classes;
    of.prediction = a.logits;
    of.target = a.target;
    of.ignore_index = a.ignore_index;
    Launch launch("confusion", c, 1);
    auto* const counts = static_cast<int64_t*>(upload(num_cells, SEGLOSS_INT64, [](int64_t) { return 0; }));
    launch.finish(segloss_cuda_confusion(&of, &launch.call, counts));
    cudaMemcpy(got.data(), counts, got.size() * sizeof got[0], cudaMemcpyDeviceToHost);
    got.back() = 0;
    report("counts", got == expected);
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 7) {
        printf("simulate LOGITS LABELS LAYOUT CLASSES VOXELS VARIANT\n");
        return 2;
    }
    const auto c = draw_case(argv);
    const auto a = arguments_of(c);
    test_cross_entropy(c, a);
    test_soft_stats(c, a, SEGLOSS_SOFTMAX);
    test_soft_stats(c, a, SEGLOSS_SIGMOID);
    if (!c.is_weighted && c.gamma == 0) {
        test_confusion(c, a);
        test_refusal(c);
    }
    return failures > 0;
}
