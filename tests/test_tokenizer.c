/* The tokenizer: examples worked by hand, textbook training and encoding, any bytes there and back, and bad files.
   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include "check.h"
#include "unicode_classes.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
static const char path[] = "build/test_tokenizer.tmp";
static uint64_t seed = 1;

static int below(int n) { return (int)(random_bits(&seed) % (uint64_t)n); }

/* CUTTING INTO PIECES ========================================================================================== */

/* The pieces of n bytes, each with a bar after it. */
static const char *cut(const Tokenizer *t, const char *text, size_t n) {
    static char out[4096];
    size_t at = 0, plain = 0, length, used = 0;
    int special;
    for (; (length = next_piece(t, text + at, n - at, &plain, &special)) > 0; at += length) {
        memcpy(out + used, text + at, length);
        used += length;
        out[used++] = '|';
    }
    out[used] = 0;
    return at == n ? out : "not all of it";
}

#define CHECK_CUT(t, text, expected) CHECK(strcmp(cut(t, text, sizeof(text) - 1), expected) == 0)

static void test_pieces(void) {
    Tokenizer t;
    CHECK(tokenizer_bytes(&t) == 0);
    CHECK_CUT(&t, "", "");
    CHECK_CUT(&t, "Hello world", "Hello| world|");
    CHECK_CUT(&t, "x1y22 33", "x|1|y|22| 33|");
    CHECK_CUT(&t, "a.b, c!?", "a|.|b|,| c|!?|");
    CHECK_CUT(&t, "it's we're I've I'm he'll she'd don't", "it|'s| we|'re| I|'ve| I|'m| he|'ll| she|'d| don|'t|");
    CHECK_CUT(&t, "IT'S 's ''s 'l 'r", "IT|'|S| '|s| ''|s| '|l| '|r|");
    CHECK_CUT(&t, "'sa're'v", "'s|a|'re|'|v|");
    CHECK_CUT(&t, "'", "'|");
    CHECK(piece_length(&t, "'\0'", 3) == 3); /* a NUL is no contraction */
    CHECK_CUT(&t, "a  b", "a| | b|");
    CHECK_CUT(&t, "a   \n  b", "a|   \n | b|");
    CHECK_CUT(&t, "a\nb", "a|\n|b|");
    CHECK_CUT(&t, "a\n\nb", "a|\n|\n|b|");
    CHECK_CUT(&t, "a \tb", "a| |\t|b|");
    CHECK_CUT(&t, "  a  ", " | a|  |");
    CHECK_CUT(&t, " ", " |");
    CHECK_CUT(&t, "a\v\f\r\n1", "a|\v\f\r|\n|1|");
    CHECK_CUT(&t, "\xc3\xa9t\xc3\xa9 1\xe4\xb8\xad", "\xc3\xa9t\xc3\xa9| 1|\xe4\xb8\xad|"); /* others are letters */
    CHECK_CUT(&t, "\xff\x80 a\xc3", "\xff\x80| a\xc3|");
    CHECK_CUT(&t, "a <|endoftext|> b", "a| |<|endoftext|>| b|");
    CHECK_CUT(&t, "<|endoftext|><|endoftext|", "<|endoftext|>|<||endoftext|||");
    CHECK_CUT(&t, "<<|endoftext|>>", "<|<|endoftext|>|>|");
    tokenizer_free(&t);
}

static void test_unicode_pieces(void) {
    Tokenizer t;
    CHECK(tokenizer_bytes(&t) == 0 && tokenizer_classes(&t, unicode_classes, COUNT(unicode_classes), "unicode") == 0);
    CHECK_CUT(&t, "Hello world 12", "Hello| world| 12|");
    CHECK_CUT(&t, "na\xc3\xafve \xd0\x9c\xd0\xb8\xd1\x80", "na\xc3\xafve| \xd0\x9c\xd0\xb8\xd1\x80|");
    CHECK_CUT(&t, "a\xd9\xa3\xc2\xbd!", "a|\xd9\xa3\xc2\xbd|!|");                     /* Arabic 3, one half */
    CHECK_CUT(&t, "\xe4\xb8\xad\xe3\x80\x82\xe6\x96\x87", "\xe4\xb8\xad|\xe3\x80\x82|\xe6\x96\x87|"); /* a full stop */
    CHECK_CUT(&t, "a\xc2\xa0\xe3\x80\x80z", "a|\xc2\xa0|\xe3\x80\x80|z|");            /* spaces of 2 and 3 bytes */
    CHECK_CUT(&t, "a \xe2\x80\x83", "a| \xe2\x80\x83|");
    CHECK_CUT(&t, "x\xf0\x9f\x98\x80 \xf0\x9f\x98\x80\xf0\x9d\x94\x90",
              "x|\xf0\x9f\x98\x80| \xf0\x9f\x98\x80|\xf0\x9d\x94\x90|");                   /* two emoji, a letter */
    CHECK_CUT(&t, "a\x1c" "b\xe2\x80\x8b" "c", "a|\x1c|b|\xe2\x80\x8b|c|");           /* neither is white space */
    CHECK_CUT(&t, "a\xc3(\xe4\xb8 \xf0\x9f\x98", "a|\xc3(\xe4\xb8| \xf0\x9f\x98|");   /* cut off: U+FFFD is no letter */
    CHECK_CUT(&t, "a\x80\xbf" "b", "a|\x80\xbf|b|");
    tokenizer_free(&t);
}

/* The pattern's alternatives in their order, on ASCII. */
static int is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static int is_number(char c) { return c >= '0' && c <= '9'; }
static int is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static int is_other(char c) { return !is_letter(c) && !is_number(c) && !is_space(c); }

static size_t match(const char *s) {
    static const char *const contraction[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    int (*const run[])(char) = {is_letter, is_number, is_other};
    size_t i, n;
    for (i = 0; i < COUNT(contraction); i++)
        if (strncmp(s, contraction[i], strlen(contraction[i])) == 0) return strlen(contraction[i]);
    for (i = 0; i < COUNT(run); i++) {
        size_t start = s[0] == ' ';
        for (n = start; s[n] != 0 && run[i](s[n]); n++) {}
        if (n > start) return n;
    }
    for (n = 0; is_space(s[n]); n++) {}
    for (i = n; i > 0; i--)
        if (s[i] == 0 || is_space(s[i])) return i;
    return n;
}

static void test_pattern(void) {
    static const char alphabet[] = "  \n\t''strevlmdABz019.!<";
    char text[33];
    Tokenizer t;
    int wrong = 0;
    CHECK(tokenizer_bytes(&t) == 0);
    for (int trial = 0; trial < 100000; trial++) {
        size_t n = (size_t)below(32) + 1, at = 0;
        for (size_t i = 0; i < n; i++) text[i] = alphabet[below(sizeof alphabet - 1)];
        text[n] = 0;
        for (size_t length; at < n; at += length) {
            length = piece_length(&t, text + at, n - at);
            wrong += length != match(text + at);
        }
    }
    CHECK(wrong == 0);
    tokenizer_free(&t);
}

/* TRAINING AND ENCODING ======================================================================================== */

static int is_token(const Tokenizer *t, int id, const char *expected) {
    size_t n;
    const char *piece = tokenizer_piece(t, id, &n);
    return n == strlen(expected) && memcmp(piece, expected, n) == 0;
}

/* Whether the text encodes to the n ids. */
static int encodes(const Tokenizer *t, const char *text, const int *expected, long n) {
    int ids[256];
    return tokenizer_encode(t, text, strlen(text), ids) == n && memcmp(ids, expected, (size_t)n * sizeof *ids) == 0;
}

static int trains(Tokenizer *t, const char *text, int vocab_size) {
    return tokenizer_train(t, text, strlen(text), vocab_size) == 0 && t->n_vocab == vocab_size && t->end_of_text == 0;
}

static void test_by_hand(void) {
    Tokenizer t;
    size_t n;
    /* "ab" 1, " ab" 2, " cd" 1: a b 3 times, then _ ab twice; all other pairs once */
    CHECK(trains(&t, "ab ab ab cd", 259));
    CHECK(is_token(&t, 0, "<|endoftext|>") && is_token(&t, 1 + 'a', "a"));
    CHECK(is_token(&t, 257, "ab") && is_token(&t, 258, " ab"));
    CHECK(tokenizer_piece(&t, 1, &n)[0] == 0 && n == 1);
    CHECK(tokenizer_piece(&t, -1, &n)[0] == 0 && n == 0 && tokenizer_piece(&t, 259, &n)[0] == 0 && n == 0);
    { int ids[] = {257, 258, 1 + ' ', 1 + 'b'}; CHECK(encodes(&t, "ab ab b", ids, 4)); }
    { int ids[] = {257, 0, 258, 0}; CHECK(encodes(&t, "ab<|endoftext|> ab<|endoftext|>", ids, 4)); }
    tokenizer_free(&t);
    CHECK(tokenizer_train(&t, "ab ab ab cd", 11, 260) == -1);
    CHECK(strstr(error_message, "vocab_size is 260") && strstr(error_message, "259"));
    CHECK(tokenizer_train(&t, "ab ab", 5, 256) == -1 && strstr(error_message, "vocab_size is 256"));
    CHECK(tokenizer_train(&t, "ab ab", 5, -1) == -1 && t.n_vocab == 0);
    tokenizer_free(&t); /* after a failure, too */
    CHECK(trains(&t, "", 257) && is_token(&t, 256, "\xff"));
    tokenizer_free(&t);
    /* _ a, a b, x y twice each: the lowest left id first, and that is the space */
    CHECK(trains(&t, "xy xy ab ab", 260));
    CHECK(is_token(&t, 257, " a") && is_token(&t, 258, "xy") && is_token(&t, 259, " ab"));
    tokenizer_free(&t);
    /* a b, a c twice each: the lowest right id first */
    CHECK(trains(&t, "ac\nac\nab\nab", 259) && is_token(&t, 257, "ab") && is_token(&t, 258, "ac"));
    tokenizer_free(&t);
    /* a a a a a twice: aa aa a; then aa a before aa aa, which is as frequent; then aa aaa */
    CHECK(trains(&t, "aaaaa\naaaaa", 260));
    CHECK(is_token(&t, 257, "aa") && is_token(&t, 258, "aaa") && is_token(&t, 259, "aaaaa"));
    { int ids[] = {257, 257, 259}; CHECK(encodes(&t, "aaaaaaaaa", ids, 3)); } /* aa aa aa aa a, aa aa aa aaa */
    tokenizer_free(&t);
    /* nothing is learned across the end of a text or from it */
    CHECK(tokenizer_train(&t, "a<|endoftext|>b a<|endoftext|>b", 31, 258) == -1);
    CHECK(trains(&t, "ab<|endoftext|>ab<|endoftext|>", 258) && is_token(&t, 257, "ab"));
    tokenizer_free(&t);
}

/* As a textbook has it: all pairs counted anew for each merge, tokens compared by their bytes. */
enum { MAX_WORDS = 600, MAX_LENGTH = 40, MAX_VOCAB = 400 };
typedef struct { int id[MAX_LENGTH], n; } Word;
static Word word[MAX_WORDS];
static int n_word, count[MAX_VOCAB][MAX_VOCAB];

static void split_words(const Tokenizer *t, const char *text, size_t n) {
    size_t at = 0, plain = 0, length;
    int special;
    for (n_word = 0; (length = next_piece(t, text + at, n - at, &plain, &special)) > 0; at += length, n_word++) {
        assert(n_word < MAX_WORDS && length <= MAX_LENGTH && special < 0);
        word[n_word].n = (int)length;
        for (size_t i = 0; i < length; i++) word[n_word].id[i] = 1 + (unsigned char)text[at + i];
    }
}

static void merge_in(Word *w, int left, int right, int id) {
    int n = 0;
    for (int i = 0; i < w->n; i++) {
        if (i + 1 < w->n && w->id[i] == left && w->id[i + 1] == right) w->id[n++] = id, i++;
        else w->id[n++] = w->id[i];
    }
    w->n = n;
}

/* Whether the bytes of a token are those of two others. */
static int is_joined(const Tokenizer *t, int id, int left, int right) {
    size_t n, n_left, n_right;
    const char *piece = tokenizer_piece(t, id, &n);
    const char *a = tokenizer_piece(t, left, &n_left), *b = tokenizer_piece(t, right, &n_right);
    return n == n_left + n_right && memcmp(piece, a, n_left) == 0 && memcmp(piece + n_left, b, n_right) == 0;
}

/* Whether the tokens of the vocabulary are those that training makes. */
static int is_trained(const Tokenizer *t) {
    for (int id = N_BASE; id < t->n_vocab; id++) {
        int left = 0, right = 0;
        memset(count, 0, sizeof count);
        for (int w = 0; w < n_word; w++)
            for (int i = 0; i + 1 < word[w].n; i++) count[word[w].id[i]][word[w].id[i + 1]]++;
        for (int i = 0; i < id; i++)
            for (int j = 0; j < id; j++)
                if (count[i][j] > count[left][right]) left = i, right = j;
        if (!is_joined(t, id, left, right)) return 0;
        for (int w = 0; w < n_word; w++) merge_in(&word[w], left, right, id);
    }
    return 1;
}

/* The token that the bytes of two spell, -1 if there is none. */
static int joined(const Tokenizer *t, int left, int right) {
    for (int id = N_BASE; id < t->n_vocab; id++)
        if (is_joined(t, id, left, right)) return id;
    return -1;
}

/* Whether the text encodes to what joining the two neighbours of the lowest id gives, one at a time. */
static int is_encoded(const Tokenizer *t, const char *text, size_t n, const int *ids, long n_ids) {
    long at = 0;
    split_words(t, text, n);
    for (Word *w = word; w < word + n_word; w++) {
        for (;;) {
            int best = INT_MAX, where = 0, id;
            for (int i = 0; i + 1 < w->n; i++)
                if ((id = joined(t, w->id[i], w->id[i + 1])) >= 0 && id < best) best = id, where = i;
            if (best == INT_MAX) break;
            w->id[where] = best;
            for (int i = where + 1; i + 1 < w->n; i++) w->id[i] = w->id[i + 1];
            w->n--;
        }
        if (at + w->n > n_ids || memcmp(ids + at, w->id, (size_t)w->n * sizeof *ids) != 0) return 0;
        at += w->n;
    }
    return at == n_ids;
}

/* n bytes of random words over the first letters of the alphabet, many of them repeated. */
static void random_words(char *text, size_t n, int n_letter) {
    size_t at = 0;
    while (at < n) {
        int length = 1 + below(below(10) == 0 ? 30 : 8);
        for (char letter = 'a'; length > 0 && at < n; length--) {
            if (below(3) > 0) letter = (char)('a' + below(n_letter));
            text[at++] = letter;
        }
        if (at < n) text[at++] = below(8) > 0 ? ' ' : '\n';
    }
}

static void test_textbook(void) {
    char text[800], other[800];
    int ids[800], vocab_size;
    Tokenizer t;
    for (int trial = 0; trial < 24; trial++) {
        random_words(text, sizeof text, 1 + trial % 6);
        random_words(other, sizeof other, 1 + trial % 6);
        vocab_size = trial % 6 > 0 ? 317 : 263;
        while (tokenizer_train(&t, text, sizeof text, vocab_size) != 0) vocab_size--;
        CHECK(vocab_size > 257);
        split_words(&t, text, sizeof text);
        CHECK(is_trained(&t));
        CHECK(is_encoded(&t, text, sizeof text, ids, tokenizer_encode(&t, text, sizeof text, ids)));
        CHECK(is_encoded(&t, other, sizeof other, ids, tokenizer_encode(&t, other, sizeof other, ids)));
        for (int id = N_BASE; id < t.n_vocab; id++) { /* each token is the encoding of its bytes */
            size_t n;
            const char *piece = tokenizer_piece(&t, id, &n);
            CHECK(tokenizer_encode(&t, piece, n, ids) == 1 && ids[0] == id);
        }
        tokenizer_free(&t);
    }
}

/* Tokens have at most 255 bytes, however long the repetition. */
static void test_longest_token(void) {
    char text[4096];
    int ids[4096];
    size_t n, longest = 0;
    Tokenizer t;
    memset(text, 'a', sizeof text);
    CHECK(tokenizer_train(&t, text, sizeof text, 257 + 7) == 0); /* 2, 4, 8, ..., 128; twice 128 is too long */
    for (int id = 0; id < t.n_vocab; id++)
        if (tokenizer_piece(&t, id, &n), n > longest) longest = n;
    CHECK(longest == 128);
    CHECK(tokenizer_encode(&t, text, sizeof text, ids) == 32);
    CHECK(tokenizer_save(&t, path) == 0);
    tokenizer_free(&t);
    CHECK(tokenizer_train(&t, text, sizeof text, 257 + 8) == -1);
    CHECK(tokenizer_load(&t, path) == 0 && tokenizer_encode(&t, text, sizeof text, ids) == 32);
    tokenizer_free(&t);
}

/* ANY BYTES THERE AND BACK ===================================================================================== */

static int comes_back(const Tokenizer *t, const char *text, size_t n) {
    int *ids = (int *)allocate(n, sizeof *ids);
    long n_ids = tokenizer_encode(t, text, n, ids);
    size_t at = 0, length;
    int same = n_ids >= 0 && (size_t)n_ids <= n;
    for (long i = 0; i < n_ids && same; i++, at += length) {
        const char *piece = tokenizer_piece(t, ids[i], &length);
        same = ids[i] >= 0 && ids[i] < t->n_vocab && length <= n - at && memcmp(text + at, piece, length) == 0;
    }
    release(ids);
    return same && at == n;
}

static void test_any_bytes(void) {
    static const char *const part[] = {"<|endoftext|>", "<|endof", "'ll", "  ", "\xf0\x9f\x98", "\xe2\x80\x83", "\xc3",
                                       "ab", "\xff"};
    char text[1024], trained[5000];
    int all = 1;
    Tokenizer t;
    random_words(trained, sizeof trained, 20);
    CHECK(tokenizer_train(&t, trained, sizeof trained, 300) == 0);
    for (int unicode = 0; unicode < 2; unicode++) {
        for (int trial = 0; trial < 2000; trial++) {
            size_t n = (size_t)below(trial < 1000 ? 40 : (int)sizeof text - 16);
            for (size_t i = 0; i < n; i++) text[i] = (char)below(trial % 2 ? 256 : 128);
            for (size_t i = 0; i + 16 < n; i += 1 + (size_t)below(40)) {
                const char *p = part[below(COUNT(part))];
                memcpy(text + i, p, strlen(p));
            }
            all &= comes_back(&t, text, n);
        }
        CHECK(tokenizer_classes(&t, unicode_classes, COUNT(unicode_classes), "unicode") == 0);
    }
    CHECK(all);
    for (int c = 0; c < 256; c++) text[c] = (char)c;
    for (size_t n = 0; n <= 256; n++) CHECK(comes_back(&t, text, n));
    tokenizer_free(&t);
}

/* A million letters without a space. What takes the square of that takes an hour. */
static void test_long_word(void) {
    size_t n = 1000000;
    char *text = (char *)allocate(n, 1), trained[5000];
    Tokenizer t;
    random_words(trained, sizeof trained, 2);
    CHECK(tokenizer_train(&t, trained, sizeof trained, 400) == 0);
    memset(text, 'a', n);
    CHECK(comes_back(&t, text, n));
    for (size_t i = 0; i < n; i++) text[i] = (char)('a' + below(2));
    CHECK(comes_back(&t, text, n));
    memset(text, ' ', n);
    CHECK(comes_back(&t, text, n));
    tokenizer_free(&t);
    CHECK(tokenizer_train(&t, text, n, 257 + 7) == 0);
    tokenizer_free(&t);
    release(text);
}

/* FILES ======================================================================================================== */

static void write_bytes(const char *data, size_t n) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(data, 1, n, file) == n);
    if (file != NULL) fclose(file);
}

/* Whether loading these bytes fails with a message that names the file and says this. */
static int refuses(const char *data, size_t n, const char *message) {
    Tokenizer t;
    write_bytes(data, n);
    error_message[0] = 0;
    if (tokenizer_load(&t, path) == 0) {
        tokenizer_free(&t);
        return 0;
    }
    if (t.n_vocab == 0 && strstr(error_message, path) != NULL && strstr(error_message, message) != NULL) return 1;
    printf("got: %s\n", error_message);
    return 0;
}

enum { RANGES = 20, TOKENS = RANGES + 6 * 12, BYTES = TOKENS + 14, MERGES = BYTES + 512, SMALL = MERGES + 3 + 4 };

static void test_layout(void) {
    static const unsigned char head[] = {'M', 'A', 'M', 'B', 'A', 'T', 'O', 'K', 1, 0, 0, 0, 3, 1, 0, 0, 6, 0, 0, 0,
                                         9, 0, 0, 0, 13, 0, 0, 0, 3, 0, 0, 0};
    Tokenizer t, u;
    size_t n = 0, n2 = 0;
    char *data, *again;
    CHECK(trains(&t, "ab ab ab cd", 259) && tokenizer_save(&t, path) == 0);
    tokenizer_free(&t);
    data = read_file(path, &n);
    CHECK(data != NULL && n == SMALL && memcmp(data, head, sizeof head) == 0);
    CHECK(memcmp(data + TOKENS, "\x0d<|endoftext|>\1\0\1\1\1\2", 20) == 0);
    CHECK(memcmp(data + MERGES, "\2ab\3 ab", 7) == 0);
    CHECK(tokenizer_load(&u, path) == 0 && u.n_vocab == 259 && u.end_of_text == 0 && is_token(&u, 258, " ab"));
    { int ids[] = {257, 258, 0, 1 + ' ', 1 + 'b'}; CHECK(encodes(&u, "ab ab<|endoftext|> b", ids, 5)); }
    CHECK(tokenizer_classes(&u, unicode_classes, COUNT(unicode_classes), "unicode") == 0);
    CHECK(tokenizer_save(&u, path) == 0);
    tokenizer_free(&u);
    CHECK(tokenizer_load(&u, path) == 0 && u.n_range == COUNT(unicode_classes));
    CHECK_CUT(&u, "a\xd9\xa3\xe3\x80\x82", "a|\xd9\xa3|\xe3\x80\x82|");
    CHECK(memcmp(u.range, unicode_classes, sizeof unicode_classes) == 0);
    tokenizer_free(&u);
    /* the same text, the same file */
    CHECK(trains(&t, "ab ab ab cd", 259) && tokenizer_save(&t, path) == 0);
    again = read_file(path, &n2);
    CHECK(again != NULL && n2 == n && memcmp(data, again, n) == 0);
    tokenizer_free(&t);
    release(data), release(again);
    CHECK(tokenizer_load(&u, "build/no such file") == -1 && strstr(error_message, "no such file"));
    CHECK(tokenizer_bytes(&t) == 0 && tokenizer_save(&t, "build/no such directory/tokenizer.bin") == -1);
    tokenizer_free(&t);
}

static void test_bad_files(void) {
    static const struct { size_t at; unsigned char byte; const char *message; } flip[] = {
        {0, 'm', "does not start"}, {8, 2, "version is 2"}, {11, 1, "version"}, {12, 0, "n_vocab is 256"},
        {13, 0, "n_vocab is 3"}, {15, 0x80, "n_vocab"}, {15, 0x7f, "n_vocab"}, {12, 4, "ends in token 259"},
        {12, 2, "4 bytes follow"}, {16, 7, "class"}, {19, 0xff, "n_range"}, {19, 0x10, "n_range"},
        {RANGES, 14, "range 0"}, {RANGES + 4, 32, "range 1"}, {RANGES + 4, 255, "range 1"},
        {RANGES + 8, 0, "class 0"}, {RANGES + 8, 4, "class 4"}, {TOKENS - 6, 0x11, "range 5"},
        {RANGES + 11, 1, "range 0"}, {TOKENS, 0, "token 0 has length 0"}, {TOKENS, 255, "token 1"},
        {TOKENS + 1, 'x', NULL}, {BYTES, 0, "token 1 has length 0"}, {BYTES, 2, "token 1 is not the byte 0"},
        {BYTES + 1, 1, "token 1 is not the byte 0"}, {MERGES - 1, 254, "token 256 is not the byte 255"},
        {MERGES, 0, "token 257 has length 0"}, {MERGES, 1, "token 257"}, {MERGES, 3, "token 257"},
        {MERGES + 1, 'x', "token 258 is not made of two"}, {MERGES + 3, 4, "ends in token 258"},
        {MERGES + 3, 255, "ends in token 258"}, {MERGES + 3, 2, "1 bytes follow"}, {MERGES + 4, 'x', NULL},
    };
    static const char *const last[] = {"\3abc", "\2ab", "\1a", "\4abab"}; /* good, there twice, there twice, good */
    Tokenizer t;
    size_t n;
    char *data, bad[SMALL + 8];
    int n_loaded = 0;
    CHECK(trains(&t, "ab ab ab cd", 259) && tokenizer_save(&t, path) == 0);
    tokenizer_free(&t);
    data = read_file(path, &n);
    CHECK(data != NULL && n == SMALL);
    for (size_t cut_at = 0; cut_at < SMALL; cut_at++) CHECK(refuses(data, cut_at, ""));
    for (size_t i = 0; i < COUNT(flip); i++) {
        memcpy(bad, data, SMALL);
        bad[flip[i].at] = (char)flip[i].byte;
        if (flip[i].message != NULL) CHECK(refuses(bad, SMALL, flip[i].message));
        else CHECK(!refuses(bad, SMALL, ""));
    }
    for (size_t i = 0; i < COUNT(last); i++) {
        memcpy(bad, data, SMALL - 4);
        memcpy(bad + SMALL - 4, last[i], strlen(last[i]));
        if (i % 3 == 0) CHECK(!refuses(bad, SMALL - 4 + strlen(last[i]), ""));
        else CHECK(refuses(bad, SMALL - 4 + strlen(last[i]), "token 258 is the same as token"));
    }
    memcpy(bad, data, SMALL);
    bad[16] = 1;
    CHECK(refuses(bad, RANGES + 11, "n_range is 1"));
    memcpy(bad, data, SMALL);
    memcpy(bad + SMALL, "x", 1);
    CHECK(refuses(bad, SMALL + 1, "1 bytes follow"));
    memcpy(bad, data, SMALL);
    memcpy(bad + TOKENS, "\1a", 2); /* an end of text that is also a byte */
    memmove(bad + TOKENS + 2, bad + BYTES, SMALL - BYTES);
    CHECK(refuses(bad, SMALL - 12, "token 98 starts with token 0"));
    for (size_t at = 0; at < SMALL; at++) { /* any byte changed: refused, or a tokenizer that works */
        memcpy(bad, data, SMALL);
        bad[at] = (char)(bad[at] ^ 1 << below(8));
        write_bytes(bad, SMALL);
        if (tokenizer_load(&t, path) != 0) continue;
        CHECK(comes_back(&t, bad, SMALL));
        tokenizer_free(&t);
        n_loaded++;
    }
    CHECK(n_loaded > 0 && n_loaded < SMALL / 4);
    release(data);
    remove(path);
}

int main(void) {
    test_pieces();
    test_unicode_pieces();
    test_pattern();
    test_by_hand();
    test_textbook();
    test_longest_token();
    test_any_bytes();
    test_long_word();
    test_layout();
    test_bad_files();
    return check_report();
}
