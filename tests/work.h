/* Files of tests. In names and commands @ stands for a directory under /tmp, which main then makes: mkdtemp(work).
   To be included after check.h and mamba.c.
   SPDX-License-Identifier: MIT */
static char work[] = "/tmp/mamba-test-XXXXXX";

/* Replaces @. */
static void expand(char *to, const char *from) {
    for (; *from != 0; from++) {
        if (*from == '@') to += sprintf(to, "%s", work);
        else *to++ = *from;
    }
    *to = 0;
}

/* The same; the text stays until the fourth call from then on. */
static const char *at(const char *text) {
    static char expanded[4][1 << 14];
    static int next;
    next = (next + 1) % 4;
    expand(expanded[next], text);
    return expanded[next];
}

static int exists(const char *name) { return access(at(name), F_OK) == 0; }

static char *slurp(const char *name, size_t *n) { return read_file(at(name), n); }

static void put(const char *name, const void *data, size_t n) {
    FILE *file = fopen(at(name), "wb");
    CHECK(file != NULL && fwrite(data, 1, n, file) == n && fclose(file) == 0);
}

static void put_text(const char *name, const char *text) { put(name, text, strlen(text)); }

static int is_same(const char *a, const char *b) {
    size_t n, m;
    char *x = slurp(a, &n), *y = slurp(b, &m);
    int same = x != NULL && y != NULL && n == m && memcmp(x, y, n) == 0;
    release(x);
    release(y);
    return same;
}

static void shell(const char *command) { CHECK(system(at(command)) == 0); }
