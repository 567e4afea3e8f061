/* The text of the tutorial against what it speaks of: listings, outputs, numbers, names, links, lengths. What is
   checked stands in tutorial/README.md, "For contributors". Runs in the root of the repository, after the chapters'
   programs have written build/tutorial (the Makefile sees to that). SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <dirent.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

enum { MAX_FILES = 256, MAX_LINES = 400, MAX_PATH = 512 };

typedef struct {
    const char *text;
    int length;
} Line;

static char document[2 * MAX_PATH]; /* what is being checked, and where in it */
static int document_line;

/* Counts a check; prints what is wrong, with the place. */
__attribute__((format(printf, 2, 3))) static void verify(int good, const char *format, ...) {
    va_list args;
    if (good) {
        check_passed++;
        return;
    }
    check_failed++;
    printf("%s:%d: ", document, document_line);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

/* A file's text, or NULL. */
static char *load(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    long n;
    if (f == NULL || fseek(f, 0, SEEK_END) != 0 || (n = ftell(f)) < 0) {
        if (f != NULL) fclose(f);
        return NULL;
    }
    rewind(f);
    text = (char *)calloc((size_t)n + 1, 1);
    if (text != NULL && fread(text, 1, (size_t)n, f) != (size_t)n) text[0] = 0;
    fclose(f);
    return text;
}

/* a and b, one after the other; both may be NULL and are freed. */
static char *append(char *a, char *b) {
    size_t n = a != NULL ? strlen(a) : 0, m = b != NULL ? strlen(b) : 0;
    char *both = (char *)calloc(n + m + 2, 1);
    if (n > 0) memcpy(both, a, n);
    both[n] = '\n';
    if (m > 0) memcpy(both + n + 1, b, m);
    free(a);
    free(b);
    return both;
}

/* directory/name, in the path of 2 * MAX_PATH bytes. */
static void join(char *path, const char *directory, const char *name) {
    snprintf(path, 2 * MAX_PATH, "%.500s%s%.500s", directory, *directory != 0 ? "/" : "", name);
}

static int exists(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f != NULL) fclose(f);
    return f != NULL;
}

/* The names in a directory that end so, in order. */
static int list(const char *directory, const char *ending, char names[MAX_FILES][MAX_PATH]) {
    DIR *dir = opendir(directory);
    int n = 0;
    for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL && n < MAX_FILES;) {
        size_t length = strlen(e->d_name), end = strlen(ending);
        if (length > end && strcmp(e->d_name + length - end, ending) == 0)
            snprintf(names[n++], MAX_PATH, "%s", e->d_name);
    }
    if (dir != NULL) closedir(dir);
    qsort(names, (size_t)n, MAX_PATH, (int (*)(const void *, const void *))strcmp);
    return n;
}

static int in_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

/* The next place of a whole word (n bytes) in text, or NULL. */
static const char *find_word(const char *text, const char *word, size_t n) {
    for (const char *start = text; *text != 0; text++)
        if (strncmp(text, word, n) == 0 && !in_word(text[n]) && (text == start || !in_word(text[-1]))) return text;
    return NULL;
}

/* All source code, for looking up names. */
static char *all_sources(void) {
    static char names[MAX_FILES][MAX_PATH];
    const char *const roots[] = {"mamba.c", "mamba.cu", "train.c", "run.c", "tests/cuda_on_cpu.h"};
    const int n_root = (int)(sizeof roots / sizeof *roots);
    char *all = NULL, path[2 * MAX_PATH];
    int n = list("tutorial", ".c", names);
    n += list("tutorial", ".cu", names + n);
    n += list("tutorial", ".h", names + n);
    for (int i = 0; i < n + n_root; i++) {
        join(path, i < n_root ? "" : "tutorial", i < n_root ? roots[i] : names[i - n_root]);
        all = append(all, load(path));
    }
    return all;
}

static int split(char *text, Line *line, int max) {
    int n = 0;
    for (const char *p = text; *p != 0 && n < max; n++) {
        line[n].text = p, line[n].length = (int)strcspn(p, "\n");
        p += line[n].length;
        if (*p != 0) p++;
    }
    return n;
}

static int begins(const Line *l, const char *with) { return strncmp(l->text, with, strlen(with)) == 0; }

/* The lines of a definition, the comment above it included: of a function, or of a type, a constant or a macro. It
   begins at the left edge and ends there with a }, if it does not end in its first line. */
static int definition(const Line *line, int n, const char *name, int *first, int *end) {
    size_t length = strlen(name);
    for (int i = 0, stop, start; i < n; i++) {
        const char *text = line[i].text, *at = find_word(text, name, length), *last = text + line[i].length - 1;
        int is_function = at != NULL && at[length] == '(';
        if (at == NULL || at > last) continue;
        start = stop = i;
        if (*text == '}') {
            while (start > 0 && !begins(&line[start], "typedef")) start--;
        } else if (is_function && isalpha((unsigned char)*text)) {
            if (*last == ';') continue; /* a declaration */
            while (*last != '}' && stop < n - 1 && !begins(&line[++stop], "}")) {
            }
        } else if (begins(&line[i], "enum") || begins(&line[i], "typedef") || begins(&line[i], "static const")) {
            while (*last != ';' && stop < n - 1 && !begins(&line[++stop], "}")) {
            }
        } else if (!begins(&line[i], "#define")) continue;
        while (start > 0 && line[start - 1].length > 0 && !begins(&line[start - 1], "}") &&
               !begins(&line[start - 1], "#"))
            start--;
        *first = start, *end = stop + 1;
        return 1;
    }
    return 0;
}

static int indentation(const Line *l) { return (int)strspn(l->text, " "); }
static int is_gap(const Line *l) {
    return l->length == indentation(l) + 3 && strncmp(l->text + indentation(l), "...", 3) == 0;
}

static int same_line(const Line *source, const Line *quote, int shift) {
    if (quote->length == 0) return source->length == 0;
    return source->length == quote->length + shift && (int)strspn(source->text, " ") >= shift &&
           memcmp(source->text + shift, quote->text, (size_t)quote->length) == 0;
}

/* Whether the quoted lines are among those of the source, in their order and without a break except at "...".
   shift: by how much they are indented less; -1: not known yet. */
static int quoted(const Line *source, int n_source, const Line *quote, int n, int shift) {
    while (n > 0 && is_gap(quote)) quote++, n--;
    if (n == 0) return 1;
    for (int i = 0; i < n_source; i++) {
        int s = shift >= 0 ? shift : indentation(&source[i]) - indentation(quote), j = 0;
        if (s < 0) continue;
        while (j < n && !is_gap(&quote[j]) && i + j < n_source && same_line(&source[i + j], &quote[j], s)) j++;
        if (j == n || is_gap(&quote[j]))
            if (j > 0 && quoted(source + i + j, n_source - i - j, quote + j, n - j, s)) return 1;
    }
    return 0;
}

/* A block that says FILE or FILE:NAME. */
static void check_quote(char *source_name, const Line *quote, int n) {
    static Line line[10000];
    char path[2 * MAX_PATH], *name = strchr(source_name, ':'), *text;
    int n_line, first = 0, end;
    if (name != NULL) *name++ = 0;
    snprintf(path, sizeof path, "%s", source_name);
    if (!exists(path)) join(path, "tutorial", source_name);
    text = load(path);
    verify(text != NULL, "quotes %s, which does not exist", source_name);
    if (text == NULL) return;
    end = n_line = split(text, line, 10000);
    if (name == NULL || definition(line, n_line, name, &first, &end)) {
        verify(quoted(line + first, end - first, quote, n, -1), "these lines are not in %s%s%s (any more)", source_name,
               name != NULL ? ", " : "", name != NULL ? name : "");
    } else verify(0, "%s defines no %s", source_name, name);
    free(text);
}

/* Whether the Makefile has the target, n bytes long; chapter-NN, ex-NN and break-NN are patterns. */
static int is_target(const char *target, size_t n) {
    char *makefile = load("Makefile"), path[MAX_PATH];
    int found = 0;
    for (const char *p = makefile; !found && p != NULL; p = strchr(p, '\n')) {
        size_t names = strcspn(++p, ":\n");
        for (const char *q = p; p[names] == ':' && q + n <= p + names && !found; q++)
            found = strncmp(q, target, n) == 0 && (q == p || q[-1] == ' ') && (q + n == p + names || q[n] == ' ');
    }
    if (strncmp(target, "ex-NN", n) == 0 || strncmp(target, "break-NN", n) == 0) found = 1;
    snprintf(path, sizeof path, "tutorial/ex_%.2s.c", n == 5 ? target + 3 : n == 10 ? target + 8 : "--");
    if (strncmp(target, "ex-", 3) == 0 || strncmp(target, "chapter-", 8) == 0) found |= exists(path);
    if (n == 8 && strncmp(target, "break-", 6) == 0) {
        static char names[MAX_FILES][MAX_PATH];
        for (int i = list("tutorial/out", "_break.txt", names) - 1; i >= 0; i--)
            found |= strncmp(names[i], target + 6, 2) == 0;
    }
    free(makefile);
    return found;
}

/* Every "make TARGET" in a line of commands. */
static void check_commands(const char *text, int length) {
    for (const char *p = text; p < text + length; p++) {
        size_t n;
        if (strncmp(p, "make ", 5) != 0 || (p > text && p[-1] != ' ')) continue;
        p += 5;
        n = strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/.");
        if (n > 0 && p[n] != '=' && *p != '-') verify(is_target(p, n), "the Makefile has no target %.*s", (int)n, p);
    }
}

/* A number (without its thousands' commas) as a whole in a text; more zeros after its point may follow there. */
static int has_number(const char *text, const char *number) {
    size_t n = strlen(number);
    for (const char *p = text; p != NULL && (p = strstr(p, number)) != NULL; p++) {
        int before = p > text && (isalnum((unsigned char)p[-1]) || p[-1] == '.' || p[-1] == '_');
        const char *end = p + n + (strchr(number, '.') != NULL ? strspn(p + n, "0") : 0);
        int after = isalnum((unsigned char)*end) || (*end == '.' && isdigit((unsigned char)end[1]));
        if (!before && !after) return 1;
    }
    return 0;
}

/* The length of the number at p, its value's text without commas in out; 0 where none begins. */
static int number_at(const char *line, const char *p, char out[64]) {
    int n = 0, k = 0;
    if (!isdigit((unsigned char)*p) || (p > line && (in_word(p[-1]) || p[-1] == '.'))) return 0;
    while (k < 63) {
        int group = p[n] == ',' && isdigit((unsigned char)p[n + 1]) && isdigit((unsigned char)p[n + 2]) &&
                    isdigit((unsigned char)p[n + 3]) && !isdigit((unsigned char)p[n + 4]);
        int point = p[n] == '.' && isdigit((unsigned char)p[n + 1]);
        int power = p[n] == 'e' && (isdigit((unsigned char)p[n + 1]) ||
                                    (strchr("+-", p[n + 1]) != NULL && isdigit((unsigned char)p[n + 2])));
        if (power) out[k++] = p[n++];
        else if (!group && !point && !isdigit((unsigned char)p[n])) break;
        if (p[n] != ',') out[k++] = p[n];
        n++;
    }
    out[k] = 0;
    return n;
}

/* The numbers of a line of prose: those with a point, an exponent or three digits come from somewhere. */
static void check_numbers(const char *line, int length, const char *const corpus[], int n_corpus) {
    char number[64];
    for (int i = 0, n; i<length; i += n> 0 ? n : 1) {
        int found = 0;
        if (line[i] == ']' && line[i + 1] == '(') i += (int)strcspn(line + i, ")"); /* where a link leads */
        n = number_at(line, line + i, number);
        if (i >= 8 && strncmp(line + i - 8, "Section ", 8) == 0) continue; /* the paper's */
        if (n == 0 || in_word(line[i + n]) || (strlen(number) < 3 && strpbrk(number, ".e") == NULL)) continue;
        for (int c = 0; c < n_corpus && !found; c++) found = corpus[c] != NULL && has_number(corpus[c], number);
        verify(found, "the number %s is in no output of the chapter, no listing and not in facts.txt", number);
    }
}

/* Whether mamba.c defines a function within the section of that number. */
static int in_section(const char *name, size_t length, int section) {
    char *text = load("mamba.c"), heading[32], *start, *end, found = 0;
    snprintf(heading, sizeof heading, "\n/* %d. ", section);
    start = strstr(text, heading);
    snprintf(heading, sizeof heading, "\n/* %d. ", section + 1);
    end = start != NULL ? strstr(start, heading) : NULL;
    if (end != NULL) *end = 0;
    for (const char *p = start; p != NULL && !found && (p = find_word(p, name, length)) != NULL; p++) {
        const char *line = p;
        while (line > start && line[-1] != '\n') line--;
        found = isalpha((unsigned char)*line) || *line == '}' || *line == '#';
    }
    free(text);
    return found;
}

/* A span in `code`: names with an underscore or (), files, options and make targets must exist; and if "(section N)"
   follows, mamba.c must define the name there. */
static void check_span(const char *span, size_t n, const char *sources) {
    char text[MAX_PATH], path[2 * MAX_PATH];
    const char *const endings[] = {".c", ".cu", ".h", ".md", ".txt", ".svg", ".bin", ".sh"};
    size_t word = 0;
    if (n >= sizeof text) return;
    memcpy(text, span, n), text[n] = 0;
    while (in_word(text[word])) word++;
    if (strncmp(text, "make ", 5) == 0) check_commands(text, (int)n);
    else if (strncmp(text, "--", 2) == 0) {
        text[strcspn(text, " ")] = 0;
        verify(strstr(sources, text + 2) != NULL, "no program has the option %s", text);
        return;
    } else if (word > 0 && !isdigit((unsigned char)*text) &&
               (strcmp(text + word, "()") == 0 || (word == n && strchr(text, '_') != NULL)))
        verify(find_word(sources, text, word) != NULL, "the code has no name %s", text);
    for (int i = 0; i < 8; i++) {
        size_t end = strlen(endings[i]);
        if (n <= end || strcmp(text + n - end, endings[i]) != 0 || strpbrk(text, " *N") != NULL) continue;
        join(path, "tutorial", text);
        verify(exists(text) || exists(path), "there is no file %s", text);
    }
    if (word > 0 && strncmp(span + n, "` (section ", 11) == 0)
        verify(in_section(text, word, atoi(span + n + 11)), "%.*s is not in section %d of mamba.c", (int)word, text,
               atoi(span + n + 11));
}

/* Whether a Markdown file has a heading that this anchor leads to: in small letters, spaces as -, no punctuation. */
static int has_heading(const char *path, const char *anchor) {
    char *text = load(path), slug[MAX_PATH];
    int found = 0;
    for (const char *p = text; p != NULL && *p != 0 && !found; p += strcspn(p, "\n"), p += *p != 0) {
        int k = 0;
        const char *c = p + strspn(p, "#");
        if (*p != '#' || *c != ' ') continue;
        for (c++; *c != 0 && *c != '\n' && k < MAX_PATH - 1; c++)
            if (in_word(*c) || *c == '-') slug[k++] = (char)tolower((unsigned char)*c);
            else if (*c == ' ') slug[k++] = '-';
        slug[k] = 0;
        found = strcmp(slug, anchor) == 0;
    }
    free(text);
    return found;
}

static void check_link(const char *target, size_t n) {
    char text[MAX_PATH], path[2 * MAX_PATH], *anchor;
    const char *slash = strrchr(document, '/');
    if (n >= sizeof text || strncmp(target, "http", 4) == 0) return;
    memcpy(text, target, n), text[n] = 0;
    anchor = strchr(text, '#');
    if (anchor != NULL) *anchor++ = 0;
    snprintf(path, sizeof path, "%.*s%s", slash != NULL ? (int)(slash - document + 1) : 0, document, text);
    if (*text == 0) snprintf(path, sizeof path, "%s", document);
    verify(exists(path), "the link to %s leads nowhere", text);
    if (anchor != NULL) verify(has_heading(path, anchor), "%s has no heading #%s", path, anchor);
}

static int count_words(const char *text, int length) {
    int n = 0;
    for (int i = 0; i < length; i++)
        n += isalnum((unsigned char)text[i]) &&
             (i == 0 || isspace((unsigned char)text[i - 1]) || strchr("(*`[\"$-", text[i - 1]));
    return n;
}

/* A chapter, NN-name.md, or a README: numbers and length are checked in chapters only. */
static void check_document(const char *path, int chapter, const char *sources) {
    static Line line[10000], block[MAX_LINES];
    static char listings[1 << 18], names[MAX_FILES][MAX_PATH];
    char *text = load(path), *facts = load("tutorial/facts.txt"), *output = NULL, info[MAX_PATH] = "";
    int n_line = split(text, line, 10000), in_block = 0, n_block = 0, words = 0,
        n_output = list("tutorial/out", ".txt", names);
    const char *corpus[3];
    snprintf(document, sizeof document, "%s", path);
    listings[0] = 0;
    for (int i = 0; chapter && i < n_output; i++) {
        char output_path[2 * MAX_PATH];
        join(output_path, "tutorial/out", names[i]);
        if (strncmp(names[i], strrchr(path, '/') + 1, 2) == 0) output = append(output, load(output_path));
    }
    for (int pass = 0; pass < 2; pass++) /* first the blocks, in which numbers of the prose may be found */
        for (int i = 0; i < n_line; i++) {
            const char *p = line[i].text;
            int n = line[i].length;
            document_line = i + 1;
            if (strncmp(p, "```", 3) == 0) {
                if (!in_block) snprintf(info, sizeof info, "%.*s", n - 3, p + 3), n_block = 0;
                else if (pass == 0) {
                    char *source = strchr(info, ' ');
                    int quotes = strncmp(info, "c", 1) == 0 || strncmp(info, "text", 4) == 0;
                    verify(n_block < MAX_LINES, "the block is too long");
                    verify(!quotes || source != NULL, "this block does not say which file it quotes");
                    if (source != NULL && strcmp(source, " solution") != 0) check_quote(source + 1, block, n_block);
                }
                in_block = !in_block;
                continue;
            }
            if (in_block) {
                if (n_block < MAX_LINES) block[n_block++] = line[i];
                if (pass == 0 && strncmp(info, "sh", 2) == 0) check_commands(p, n);
                if (pass == 0 && strlen(listings) + (size_t)n + 2 < sizeof listings)
                    strncat(strcat(listings, "\n"), p, (size_t)n);
                continue;
            }
            if (pass == 0) continue;
            words += count_words(p, n);
            corpus[0] = output, corpus[1] = listings, corpus[2] = facts;
            if (chapter) check_numbers(p, n, corpus, 3);
            for (const char *c = p; c < p + n; c++) {
                size_t span = *c == '`' ? strcspn(c + 1, "`\n") : 0;
                if (span > 0) check_span(c + 1, span, sources), c += span + 1;
                else if (c[0] == ']' && c[1] == '(') check_link(c + 2, strcspn(c + 2, ")\n"));
            }
        }
    verify(!in_block, "a block does not end");
    if (chapter) verify(words >= 1000 && words <= 2500, "%d words, expected 1,000 to 2,500", words);
    free(text);
    free(facts);
    free(output);
}

/* Whether two pictures differ in nothing but the last digits of numbers: other machines round differently. */
static int same_picture(const char *a, const char *b) {
    while (*a != 0 && *b != 0) {
        char *end_a, *end_b;
        if ((isdigit((unsigned char)*a) || *a == '-') && (isdigit((unsigned char)*b) || *b == '-')) {
            double x = strtod(a, &end_a), y = strtod(b, &end_b);
            if (end_a > a && end_b > b) {
                if (fabs(x - y) > 0.021) return 0;
                a = end_a, b = end_b;
                continue;
            }
        }
        if (*a++ != *b++) return 0;
    }
    return *a == *b;
}

/* Lines that begin with ~ are measured: times, or what is left of rounding. */
static int same_output(const char *a, const char *b) {
    while (*a != 0 && *b != 0) {
        size_t n_a = strcspn(a, "\n"), n_b = strcspn(b, "\n");
        if (!(*a == '~' && *b == '~') && (n_a != n_b || memcmp(a, b, n_a) != 0)) return 0;
        a += n_a + (a[n_a] != 0), b += n_b + (b[n_b] != 0);
    }
    return *a == *b;
}

/* What the programs have just written, in build/tutorial, against what is committed, in tutorial/out. Of a picture or
   an output that is measured altogether there need not be a fresh one: a training run is not repeated for this. */
static void check_outputs(const char *ending, const char *chapters) {
    static char names[MAX_FILES][MAX_PATH];
    int n = list("tutorial/out", ending, names);
    for (int i = 0; i < n; i++) {
        char fresh_path[2 * MAX_PATH], *committed, *fresh;
        join(document, "tutorial/out", names[i]), document_line = 1;
        join(fresh_path, "build/tutorial", names[i]);
        committed = load(document), fresh = load(fresh_path);
        if (*committed != '~' && strstr(committed, "<!-- measured -->") == NULL) {
            verify(fresh != NULL, "no program wrote %s", fresh_path);
            if (fresh != NULL)
                verify((strcmp(ending, ".txt") == 0 ? same_output : same_picture)(committed, fresh),
                       "differs from %s: run make tutorial", fresh_path);
        }
        verify(strstr(chapters, names[i]) != NULL, "no chapter shows it");
        free(committed);
        free(fresh);
    }
    n = list("build/tutorial", ending, names);
    for (int i = 0; i < n; i++) {
        char committed_path[2 * MAX_PATH];
        join(document, "build/tutorial", names[i]);
        join(committed_path, "tutorial/out", names[i]);
        verify(exists(committed_path), "is not in tutorial/out: run make tutorial");
    }
}

int main(void) {
    static char names[MAX_FILES][MAX_PATH];
    char path[2 * MAX_PATH], *sources = all_sources(), *chapters = NULL;
    int n = list("tutorial", ".md", names);
    for (int i = 0; i < n; i++) {
        join(path, "tutorial", names[i]);
        chapters = append(chapters, load(path));
    }
    check_outputs(".txt", chapters);
    check_outputs(".svg", chapters);
    free(chapters);
    check_document("README.md", 0, sources);
    for (int i = 0; i < n; i++) {
        join(path, "tutorial", names[i]);
        check_document(path, isdigit((unsigned char)names[i][0]), sources);
    }
    free(sources);
    return check_report();
}
