/* The sampler: each filter against probabilities worked out by hand, ties, odd logits, and the drawn distribution.
   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include "check.h"

enum { N_DRAW = 200000, N_ID = 8 };

/* Pearson's chi-square of N_DRAW draws against p; an id with p = 0 must not be drawn. */
static double chi_square(Sampler *s, const real *logits, const double *p) {
    long count[N_ID] = {0};
    double chi = 0;
    for (int i = 0; i < N_DRAW; i++) count[sample(s, logits)]++;
    for (int id = 0; id < N_ID; id++) {
        double expected = p[id] * N_DRAW;
        if (p[id] > 0) chi += (count[id] - expected) * (count[id] - expected) / expected;
        else CHECK(count[id] == 0);
    }
    return chi;
}

/* Logits log(weight), so that p = weight / sum of the weights. */
static const int weight[N_ID] = {1, 8, 2, 4, 16, 2, 1, 6};   /* sum 40; by rank: 4 1 7 3 2 5 0 6 */

static void set_logits(real *logits) {
    for (int id = 0; id < N_ID; id++) logits[id] = (real)log(weight[id]);
}

/* One setting: draws must follow `kept` (a 0 is filtered out), up to a chi-square that 7 degrees of freedom exceed once
   in 10,000 times (29.9). */
static void check_distribution(double temperature, int top_k, double top_p, double min_p, const double *kept) {
    real logits[N_ID];
    double p[N_ID], sum = 0;
    Sampler s;
    set_logits(logits);
    CHECK(sampler_create(&s, N_ID, 4, 1234) == 0);
    s.temperature = temperature, s.top_k = top_k, s.top_p = top_p, s.min_p = min_p;
    for (int id = 0; id < N_ID; id++) sum += kept[id];
    for (int id = 0; id < N_ID; id++) p[id] = kept[id] / sum;
    CHECK(chi_square(&s, logits, p) < 29.9);
    sampler_free(&s);
}

static void test_distribution(void) {
    const double all[N_ID] = {1, 8, 2, 4, 16, 2, 1, 6}, squared[N_ID] = {1, 64, 4, 16, 256, 4, 1, 36};
    const double root[N_ID] = {1, 2.8284271247, 1.4142135624, 2, 4, 1.4142135624, 1, 2.4494897428};
    const double three[N_ID] = {0, 8, 0, 0, 16, 0, 0, 6}, five[N_ID] = {0, 8, 2, 4, 16, 0, 0, 6};
    const double one[N_ID] = {0, 0, 0, 0, 16, 0, 0, 0}, two[N_ID] = {0, 8, 0, 0, 16, 0, 0, 0};
    const double four[N_ID] = {0, 8, 0, 4, 16, 0, 0, 6};
    check_distribution(1, 0, 1, 0, all);
    check_distribution(0.5, 0, 1, 0, squared);     /* p ~ weight^(1/temperature) */
    check_distribution(2, 0, 1, 0, root);
    check_distribution(1, 3, 1, 0, three);
    check_distribution(1, 5, 1, 0, five);          /* ids 2 and 5 tie for the fifth place: the lower one gets it */
    check_distribution(1, N_ID, 1, 0, all);
    check_distribution(1, 100, 1, 0, all);
    check_distribution(1, 0, 0, 0, one);           /* at least one is kept */
    check_distribution(1, 0, 0.39, 0, one);        /* 16/40 = 0.4 */
    check_distribution(1, 0, 0.41, 0, two);        /* 24/40 = 0.6 */
    check_distribution(1, 0, 0.61, 0, three);      /* 30/40 = 0.75 */
    check_distribution(1, 0, 0.86, 0, five);       /* 34/40 = 0.85, 36/40 = 0.9 */
    check_distribution(1, 0, 1, 0.24, four);       /* at least 0.24 * 16 = 3.84 */
    check_distribution(1, 0, 1, 0.3, three);
    check_distribution(1, 0, 1, 1, one);
    check_distribution(1, 4, 0.75, 0, three);      /* top-p's share is of what top-k left: 24/34 = 0.71, 30/34 = 0.88 */
    check_distribution(1, 3, 0.75, 0, two);        /* 24/30 = 0.8 */
    check_distribution(1, 0, 0.76, 0.3, three);    /* top-p keeps four, min-p drops the last */
    check_distribution(1, 3, 1, 0.4, two);
}

/* Whatever the filters, the same seed draws the same ids, and the logits stay as they are. */
static void test_deterministic(void) {
    real logits[N_ID], before[N_ID];
    Sampler a, b;
    int same = 1, differ = 0;
    set_logits(logits);
    memcpy(before, logits, sizeof logits);
    CHECK(sampler_create(&a, N_ID, 4, 7) == 0 && sampler_create(&b, N_ID, 4, 7) == 0);
    a.top_p = b.top_p = 0.9, a.repetition_penalty = b.repetition_penalty = 1.3;
    for (int i = 0; i < 1000; i++) same &= sample(&a, logits) == sample(&b, logits);
    CHECK(same);
    b.rng = 8;
    for (int i = 0; i < 1000; i++) differ |= sample(&a, logits) != sample(&b, logits);
    CHECK(differ);
    CHECK(memcmp(logits, before, sizeof logits) == 0);
    sampler_free(&a);
    sampler_free(&b);
}

static void test_greedy(void) {
    real logits[N_ID] = {1, 3, 2, 3, 0, 3, -1, 2};
    Sampler s;
    uint64_t rng;
    CHECK(sampler_create(&s, N_ID, 0, 1) == 0);
    s.temperature = 0;
    rng = s.rng;
    CHECK(sample(&s, logits) == 1);     /* the lowest of equals */
    s.banned = 1;
    CHECK(sample(&s, logits) == 3);
    s.banned = -1, s.n_vocab = 1;
    CHECK(sample(&s, logits) == 0);
    CHECK(s.rng == rng);                /* no random number is used up */
    s.n_vocab = N_ID, s.temperature = 1, s.top_k = 1;
    for (int i = 0; i < 100; i++) CHECK(sample(&s, logits) == 1);
    s.temperature = 1e-300, s.top_k = 0, logits[5] = (real)3.5;
    for (int i = 0; i < 100; i++) CHECK(sample(&s, logits) == 5);
    sampler_free(&s);
}

/* Ids from n_vocab on and `banned` are never drawn, however large their logits. */
static void test_excluded(void) {
    real logits[N_ID] = {1, 1, 50, 1, 1, 1, 90, 100};
    Sampler s;
    int ok = 1;
    CHECK(sampler_create(&s, N_ID, 16, 1) == 0);
    s.n_vocab = 6, s.banned = 2;
    for (int setting = 0; setting < 4; setting++) {
        s.top_k = setting & 1 ? 4 : 0, s.top_p = setting & 2 ? 0.95 : 1;
        for (int i = 0; i < 2000; i++) {
            int id = sample(&s, logits);
            ok &= id >= 0 && id < 6 && id != 2;
        }
    }
    CHECK(ok);
    sampler_free(&s);
}

/* Greedy choice makes the penalty visible: after an id was taken, its logit is worth less while the ring holds it. */
static void test_penalty(void) {
    const real logits[N_ID] = {4, (real)3.9, (real)3.8, -1, -2, -2, -2, -2};
    const real negative[N_ID] = {-1, (real)-1.1, -9, -9, -9, -9, -9, -9};
    const int expected[8] = {0, 1, 2, 0, 1, 2, 0, 1};
    double p[N_ID];
    int kept = 1;
    Sampler s;
    CHECK(sampler_create(&s, N_ID, 2, 1) == 0);
    s.temperature = 0, s.repetition_penalty = 2;
    for (int i = 0; i < 8; i++) CHECK(sample(&s, logits) == expected[i]); /* a ring of two: the third is free again */
    CHECK(sample(&s, negative) == 0);   /* the ring holds 0 and 1: -2 against -2.2 */
    sampler_accept(&s, 5), sampler_accept(&s, 5);
    CHECK(sample(&s, negative) == 0);
    CHECK(sample(&s, negative) == 1);   /* -1.1 against -2 */
    sampler_free(&s);

    /* An id that occurred three times is penalised once: log 16 / 2 = log 4. */
    CHECK(sampler_create(&s, N_ID, 64, 1) == 0);
    s.repetition_penalty = 2;
    real sixteen[N_ID];
    double count = 0;
    for (int id = 0; id < N_ID; id++) sixteen[id] = (real)log(16), p[id] = (id == 3 ? 4 : 16) / 116.0;
    for (int i = 0; i < 20000; i++) {
        s.n_history = 0;
        sampler_accept(&s, 3), sampler_accept(&s, 3), sampler_accept(&s, 3), sampler_accept(&s, 999);
        count += sample(&s, sixteen) == 3;
    }
    CHECK_NEAR(count / 20000, p[3], 5 * sqrt(p[3] * (1 - p[3]) / 20000));
    sampler_free(&s);

    /* The ring's counter stays in range and the ring keeps the latest. */
    CHECK(sampler_create(&s, N_ID, 3, 1) == 0);
    for (int i = 0; i < 1000; i++) {
        sampler_accept(&s, i % N_ID);
        for (int back = 0; back < 3 && i >= 2; back++)
            kept &= s.history[(s.n_history + 2 - back) % 3] == (i - back) % N_ID;
        kept &= s.n_history <= i + 1 && s.n_history < 6;
    }
    CHECK(kept);
    sampler_free(&s);
}

/* NaN and infinities: no crash, and never an id that is not allowed. */
static void test_odd_logits(void) {
    const real infinity = (real)HUGE_VAL, nan = (real)(HUGE_VAL - HUGE_VAL);
    const real one_nan[N_ID] = {nan, 1, nan, 1, nan, nan, nan, nan};
    const real all_nan[N_ID] = {nan, nan, nan, nan, nan, nan, nan, nan};
    const real one_infinite[N_ID] = {0, infinity, 5, -infinity, nan, 3, 1, 2};
    const real none_possible[N_ID] = {-infinity, -infinity, nan, -infinity, -infinity, -infinity, -infinity, -infinity};
    Sampler s;
    CHECK(sampler_create(&s, N_ID, 4, 1) == 0);
    for (int setting = 0; setting < 16; setting++) {
        s.temperature = setting & 1 ? 0 : 0.7, s.top_k = setting & 2 ? 2 : 0, s.top_p = setting & 4 ? 0.9 : 1;
        s.min_p = setting & 8 ? 0.1 : 0;
        for (int i = 0; i < 50; i++) {
            int id = sample(&s, one_nan);
            CHECK(id == 1 || id == 3);
            CHECK(sample(&s, one_infinite) == 1);
            CHECK(sample(&s, all_nan) == 0);
            id = sample(&s, none_possible);
            CHECK(id >= 0 && id < N_ID && id != 2);
        }
    }
    sampler_free(&s);
}

/* A large vocabulary: what top-k and top-p keep is what a full sort would keep. */
static int by_rank(const void *a, const void *b) {
    return ranks_before((const Candidate *)a, (const Candidate *)b) ? -1 : 1;
}

static void test_large(void) {
    enum { LARGE = 5000 };
    static real logits[LARGE];
    static Candidate sorted[LARGE];
    static int rank[LARGE];
    uint64_t rng = 3;
    double total = 0, sum = 0;
    int n_top_p, highest = 0;
    Sampler s;
    for (int id = 0; id < LARGE; id++) {
        logits[id] = (real)((double)(random_bits(&rng) % 64) / 8); /* many ties */
        sorted[id].logit = logits[id], sorted[id].id = id;
        total += exp(logits[id]);
    }
    qsort(sorted, LARGE, sizeof *sorted, by_rank);
    for (int i = 0; i < LARGE; i++) rank[sorted[i].id] = i;
    for (n_top_p = 0; sum < 0.3 * total; n_top_p++) sum += exp(sorted[n_top_p].logit);
    CHECK(sampler_create(&s, LARGE, 0, 1) == 0);
    s.top_k = 100;
    for (int i = 0; i < 3000; i++) {
        int r = rank[sample(&s, logits)];
        if (r > highest) highest = r;
    }
    CHECK(highest == 99);               /* missed with probability e^-28 */
    s.top_k = 0, s.top_p = 0.3, highest = 0;
    for (int i = 0; i < 10000; i++) {
        int r = rank[sample(&s, logits)];
        if (r > highest) highest = r;
    }
    CHECK(highest < n_top_p && highest > n_top_p - 10);
    sampler_free(&s);
}

int main(void) {
    test_distribution();
    test_deterministic();
    test_greedy();
    test_excluded();
    test_penalty();
    test_odd_logits();
    test_large();
    return check_report();
}
