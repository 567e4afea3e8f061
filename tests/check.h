/* A check counts, and prints where it fails; a test's main ends with `return check_report();`.
   SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>

static int check_passed, check_failed;

#define CHECK(condition) ((condition) ? (void)check_passed++ : \
    (void)(check_failed++, printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition)))
#define CHECK_NEAR(a, b, tolerance) (fabs((double)(a) - (double)(b)) <= (tolerance) ? (void)check_passed++ : \
    (void)(check_failed++, printf("%s:%d: %s is %.9g, expected %s = %.9g within %.3g\n", __FILE__, __LINE__, \
                                  #a, (double)(a), #b, (double)(b), (double)(tolerance))))

/* Prints "N passed, N failed"; the exit status. */
static int check_report(void) {
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed != 0;
}
