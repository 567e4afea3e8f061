/* The model against Hugging Face Transformers: every fixture that reference.py wrote is loaded, and its logits, loss,
   the gradient of every tensor and the greedy continuation are compared with what Transformers computes from the
   same files.

   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include "check.h"

static const char *const fixture[] = {"tied", "untied", "bias", "no_conv_bias", "conv3", "conv1", "rank3", "expand3",
                                      "state5", "state1", "all_odd", "bf16", "f16", "sharded", "original"};

/* Copies the tensor `prefix` + `name` of expected.safetensors to values, which has room for n; returns how many
   elements it has, 0 if there is no such tensor. The file's header is valid and all F32, as reference.py writes
   it. */
static size_t expected(const char *file, const char *prefix, const char *name, float *values, size_t n) {
    const char *header = file + 8, *row;
    char key[128];
    size_t header_size = 0, begin, end;
    for (int i = 7; i >= 0; i--) header_size = header_size << 8 | (unsigned char)file[i];
    snprintf(key, sizeof key, "\"%s%s\":{", prefix, name);
    row = strstr(header, key);
    row = row != NULL ? strstr(row, "\"data_offsets\":[") : NULL;
    if (row == NULL || sscanf(row, "\"data_offsets\":[%zu,%zu]", &begin, &end) != 2) return 0;
    if ((end - begin) / sizeof *values <= n) memcpy(values, header + header_size + begin, end - begin);
    return (end - begin) / sizeof *values;
}

/* The same for a tensor of ids. */
static int expected_ids(const char *file, const char *name, int *ids, int n) {
    float values[64];
    int count = (int)expected(file, "", name, values, 64);
    for (int i = 0; i < count && i < n; i++) ids[i] = (int)values[i];
    return count;
}

/* The largest |a - b|, relative to the largest |b|. */
static double difference(const real *a, const float *b, size_t n) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (d > worst || isnan(d)) worst = d;
        if (fabs(b[i]) > largest) largest = fabs(b[i]);
    }
    return worst / largest;
}

/* The norm of a - b, relative to that of b. */
static double norm_difference(const real *a, const float *b, size_t n) {
    double sum = 0, of_b = 0;
    for (size_t i = 0; i < n; i++) {
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        of_b += (double)b[i] * b[i];
    }
    return sqrt(sum / of_b);
}

enum { BATCH = 2, LEN = 13, PROMPT = 2, GREEDY = 20 }; /* of reference.py */

/* The gradients are read through the backend: with beta1 = 0 the first moment after a step is the gradient. */
static double check_gradients(Backend *b, const Model *m, const char *file, const int *ids, const int *targets,
                              float loss) {
    AdamW plain = {0, 0, 1, 0, 0}; /* betas 0, eps 1, no decay, no clipping */
    real *gradient = (real *)allocate(m->n_param, sizeof *gradient);
    float *values = (float *)allocate(m->n_param, sizeof *values);
    const char *row = file + 8;
    double ours, worst = 0;
    int rows = 0;
    CHECK(gradient != NULL && values != NULL);
    CHECK(b->gradient(b->self, ids, targets, BATCH, LEN, 1) == 0);
    CHECK(b->update(b->self, &plain, 0, 1, &ours, NULL) == 0);
    CHECK_NEAR(ours, loss, 1e-5);
    CHECK(b->copy(b->self, MOMENT1, gradient, 0) == 0);
    for (int i = 0; i < m->n_tensor; i++) {
        const Tensor *t = &m->tensor[i];
        double d;
        CHECK(expected(file, "grad.", t->name, values, m->n_param) == t->size);
        d = norm_difference(gradient + t->offset, values, t->size);
        if (!(d <= 1e-4)) printf("gradient of %s: relative error %.3g\n", t->name, d);
        CHECK(d <= 1e-4);
        if (d > worst || isnan(d)) worst = d;
    }
    for (; (row = strstr(row, "\"grad.")) != NULL; row++) rows++;
    CHECK(rows == m->n_tensor); /* none of theirs is left over */
    release(gradient);
    release(values);
    return worst;
}

static void check_fixture(const char *name) {
    char dir[128], path[160], *file;
    size_t size;
    int ids[BATCH * LEN], targets[BATCH * LEN], prompt[PROMPT], wanted[GREEDY], got[GREEDY], n_logits;
    double of_logits, of_gradients, evaluated = 0;
    float loss, *theirs;
    real *ours;
    Model m;
    Backend b;
    Sampler greedy;
    snprintf(dir, sizeof dir, "tests/fixtures/%s", name);
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    file = read_file(path, &size);
    if (file == NULL || model_load(&m, dir) != 0) {
        printf("%s\n", error_message);
        CHECK(!"the fixture loads");
        release(file);
        return;
    }
    CHECK(cpu_backend(&b, &m, 0, 1) == 0);
    CHECK(expected_ids(file, "ids", ids, BATCH * LEN) == BATCH * LEN);
    CHECK(expected_ids(file, "prompt", prompt, PROMPT) == PROMPT);
    CHECK(expected_ids(file, "greedy", wanted, GREEDY) == GREEDY);
    CHECK(expected(file, "", "loss", &loss, 1) == 1);
    for (int i = 0; i < BATCH * LEN; i++) targets[i] = (i + 1) % LEN == 0 ? -1 : ids[i + 1];

    of_gradients = check_gradients(&b, &m, file, ids, targets, loss);

    n_logits = BATCH * LEN * m.config.vocab_size;
    ours = (real *)allocate((size_t)n_logits, sizeof *ours);
    theirs = (float *)allocate((size_t)n_logits, sizeof *theirs);
    CHECK(expected(file, "", "logits", theirs, (size_t)n_logits) == (size_t)n_logits);
    CHECK(b.reset(b.self, BATCH) == 0 && b.forward(b.self, ids, LEN, ours, 1) == 0);
    of_logits = difference(ours, theirs, (size_t)n_logits);
    CHECK(of_logits <= 1e-4);
    CHECK(b.reset(b.self, BATCH) == 0 && b.evaluate(b.self, ids, targets, LEN, &evaluated, NULL) == 0);
    CHECK_NEAR(evaluated, loss, 1e-5);

    CHECK(sampler_create(&greedy, m.config.vocab_size, 0, 1) == 0);
    greedy.temperature = 0;
    CHECK(b.reset(b.self, 1) == 0 && b.forward(b.self, prompt, PROMPT, NULL, 0) == 0);
    CHECK(b.generate(b.self, got, GREEDY, &greedy) == 0);
    CHECK(memcmp(got, wanted, sizeof got) == 0);

    printf("%-13s logits %.1e, loss %.1e, gradients %.1e\n", name, of_logits, fabs(evaluated - loss), of_gradients);
    sampler_free(&greedy);
    release(ours);
    release(theirs);
    b.close(b.self);
    model_free(&m);
    release(file);
}

int main(void) {
    for (size_t i = 0; i < sizeof fixture / sizeof *fixture; i++) check_fixture(fixture[i]);
    return check_report();
}
