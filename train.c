/* train.c: trains a Mamba language model on a text file, or on stories or tasks that are made up.     ./train --help

   1. Stories     built-in data of known entropy
   2. Options     one table that parses, prints usage and is stored with a run
   3. Data        text to tokens; windows to train on, rows to measure; tasks, the same of fresh samples
   4. The run     steps, measuring, samples, progress
   5. Files       what a run leaves in its directory, and how it goes on

   SPDX-License-Identifier: MIT */

#include "mamba.c"

#include <signal.h>
#include <time.h>
#ifndef _WIN32
#include <sys/ioctl.h>
#endif

/* 1. STORIES ===================================================================================================

   Built-in training data: short stories whose later sentences depend on earlier ones, told by a small grammar.
   A template is text with choices in it:

      {a|b|c}      one of these alternatives, each equally probable; they are templates themselves
      <h=name>     one of the list "name", which from here on is called h
      <f+name>     one of those that nothing in this story is called yet
      <h>          what h is called;  <h he>, <h him>, <h his>, <h He>, <h His>: its pronouns
      `            a double quote

   The entropy is exact. A choice among n costs log(n) nats, and a story costs the sum of its choices. That sum is -log
   of the probability of the *text*, provided that no other choices tell the same text, and none do: wherever a choice
   is made, the text of each alternative is known up to the next choice within it, and none of these texts begins
   another. So whoever has followed a story to this point sees from the next letters which alternative was taken.
   story_read is that reader. It finds the choices of a text again, or the first letter at which no story goes on so:
   whether a model keeps track of who has what can be counted.

   No model has a lower expected loss than the entropy, and one that has learned the grammar and remembers the story so
   far comes near it. Its windows therefore begin where a story begins, in training and when it is measured. */

static const char *const story_list[][2] = {
    {"name", "Ada/she|Bea/she|Clara/she|Daisy/she|Fern/she|Hazel/she|Ivy/she|Lily/she|Mabel/she|Nell/she|Poppy/she|"
             "Rosie/she|Alfie/he|Basil/he|Felix/he|Gus/he|Hugo/he|Jasper/he|Leo/he|Ned/he|Otto/he|Pip/he|Rufus/he|"
             "Tom/he"},
    {"animal", "badger|bear|beaver|crow|duck|fox|frog|goose|hare|hedgehog|mole|mouse|otter|owl|rabbit|squirrel|toad|"
               "turtle"},
    {"climber", "crow|owl|squirrel"},
    {"digger", "badger|hare|mole|mouse|rabbit"},
    {"swimmer", "beaver|duck|frog|goose|otter|turtle"},
    {"nature", "brave|careful|cheerful|clever|curious|gentle|lonely|quiet|shy|sleepy|small|young"},
    {"home", "at the edge of the forest|beside the slow river|by the sea|in the valley of flowers|on the windy hill|"
             "under the snowy mountain"},
    {"color", "black|blue|golden|green|purple|red|silver|striped|white|yellow"},
    {"thing", "ball|bell|boat|cup|drum|flute|hat|kite|lantern|map|ring|scarf|spoon|umbrella|whistle"},
    {"family", "aunt|brother|father|mother|sister|uncle"},
    {"weather", "bright|cloudy|cold|foggy|rainy|snowy|warm|windy"},
    {"place", "bakery|barn|bridge|castle|garden|harbor|lake|library|lighthouse|market|meadow|mill|orchard|pond|school|"
              "station"},
    {"spot", "behind the fence|beside the gate|in the long grass|next to the barrels|on the flat stone|on the old cart|"
             "under the bench|under the oak tree"},
    {"nook", "behind the clock|beside the stove|in the cupboard|in the drawer|inside the teapot|on the shelf|"
             "on the windowsill|under the bed|under the rug|under the stairs"},
    {"junk", "an old shoe|a sleeping beetle|a very cross snail|some dry leaves|two empty bottles|a cold puddle"},
    {"food", "bunch of grapes|cherry pie|ginger cake|jar of honey|loaf of bread|plate of beans|pot of jam|"
             "slice of cheese|sweet bun"},
};

static const char story_opening[] =
    "{Once upon a time|Long ago|Not so long ago|In the days of the old king} there was a little house <o=home>. In "
    "the house <o> lived a <n=nature> <s=animal> named <h=name>. <h> the <s> had a <c=color> <t=thing>. The <c> <t> "
    "was a gift from <h his> <r=family>. <h His> <r> had said, `{Take good care of|Always look after|Do not lose} the "
    "<t>.` One <d=weather> {morning|afternoon|evening}, while <h his> <r> was {asleep|baking|singing|reading}, <h> ";

static const char *const story_plots[] = {
    /* Lost, seen by a friend, found by a third. */
    "took the <c> <t> to the <p=place>. At the <p> <h he> put the <t> <u=spot> and {fell asleep. When <h he> woke "
    "up|went to pick flowers. When <h he> came back|watched the clouds go by. When <h he> got up}, there was no <t> "
    "<u>. {`Oh no!` cried|`Who has taken my <t>?` asked|`Where can it be?` said} <h>. {<h He> looked <v+spot>, but "
    "found only <j=junk>. Just then|Just then} a <l=nature> <y=animal> named <f+name> came by. `I saw <k+name> the "
    "<z=animal> with a <c> <t>,` said <f> the <y>. `<k He> was {running|walking|hurrying} to the <q+place>.` So <h> "
    "and <f> went to the <q>, and at the <q> they met <k> the <z>. `I found this <t> <u> at the <p>,` said <k>. {`Is "
    "it yours?`|`Do you know whose it is?`} `It is mine,` said <h>. `I put it <u> myself. It was a gift from my <r>.` "
    "{So <k> gave the <t> back|`Then here it is,` said <k>|`Then you must have it back,` said <k>}. To say thank you, "
    "<h> shared a <g=food> with <k> and <f>. When the <g> was gone, <h> went back to the house <o>, and <h he> never "
    "put the <t> <u> again. ",

    /* Moved by a friend while its owner was away. */
    "hid the <c> <t> <u=nook>. `Nobody will look <u>,` said <h>, and went to the <p=place> to buy a <g=food>. While "
    "<h he> was at the <p>, a <l=nature> <y=animal> named <f+name> {knocked at the door|looked in at the window|came "
    "to borrow some salt}. <f> the <y> found the <t> <u>, played with it for a while, and left it <v+nook>. {Before "
    "long|After an hour|Much later} <h> came back from the <p> to the house <o> with the <g>. <h He> looked <u>, "
    "because that was where <h he> had left the <t>. But there was no <t> <u>! <h> {began to cry|sat down and "
    "sighed|looked all over the house}. Then <f> {came back|put <f his> head in} and said, `{Do not be sad|I am "
    "sorry|Do not worry}, <h>. I left your <t> <v>.` <h> looked <v>, and there was the <t>. `My <r> will be so "
    "happy,` said <h>. `{Next time, please ask me first|I could dance with joy|What a funny place for a <t>}!` And "
    "<h> and <f> shared the <g>. ",

    /* Traded, and traded again. */
    "met a <l=nature> <y=animal> named <f+name> at the <p=place>. <f> the <y> had a <e=color> <x+thing>. `{How I wish "
    "that the <x> were mine|What a beautiful <x>|I have always wanted a <x>},` said <h>. `You may have the <x> for a "
    "<g=food>,` said <f>. `If you want a <g>, ask <k+name> the <z=animal>. <k He> lives near the <q+place>.` So <h> "
    "{hurried|ran|went} to the <q>, and at the <q> <h he> asked <k> for the <g>. `Give me your <c> <t>, and the <g> "
    "is yours,` said <k>. <h> thought of <h his> <r> {and did not know what to do|for a long time}. Then <h he> gave "
    "<k> the <t>, took the <g> to the <p> and gave it to <f>, and <f> gave <h him> the <x>. Now <h> had the <x>, <f> "
    "had the <g>, and <k> had the <t>. {And all three were happy with what they had. |But soon <h> missed the <t> so "
    "much that <h he> went back to the <q>. `The <t> was a gift from my <r>,` said <h>. `Please take the <x> for it.` "
    "So <k> got the <x>, and <h> got the <t> back. |And every {spring|summer|winter} the three of them met at the <p> "
    "to play with the <x> and the <t>. }",

    /* Lent, and lent again. */
    "lent the <c> <t> to a <l=nature> <y=animal> named <f+name>. <f> the <y> {liked the <t>|played with the <t> all "
    "day|slept beside the <t>}, and {soon|one day|by and by} <f he> lent it to <k+name> the <z=animal>. <k> the <z> "
    "took it to the <p=place>. At the <p> <k he> put the <t> <u=spot> and forgot it. {The next day|A week later|When "
    "winter came} <h> wanted the <t> back. `I do not have the <t>,` said <f>. `I lent it to <k>.` So they {asked|went "
    "to see|called} <k>. `I do not have the <t>,` said <k>. `{I am so sorry|How silly of me|Now I remember}! I forgot "
    "it at the <p>.` All three {hurried|ran|went} to the <p> and looked <u>. There was the <t>, still <u>, with {a "
    "bird|a frog|a snail|a spider} sitting on it. `My <r> will be so happy,` said <h>. Then they all went to the "
    "house <o> and ate a <g=food>. ",

    /* Out of reach; who can help depends on where it went. */
    "played with the <c> <t> near the <p=place>. Just as <h he> passed the <p>, {the <t> got stuck at the top of a "
    "tree. `I am afraid of heights,` said <h>. Along came a <l=nature> <z=climber> named <k+name>. `Leave it to me,` "
    "said <k> the <z>, and up <k he> went, higher and higher|the <t> fell into the water with a splash. `The water is "
    "too cold for me,` said <h>. Along came a <l=nature> <z=swimmer> named <k+name>. `Leave it to me,` said <k> the "
    "<z>, and in <k he> jumped, down to the very bottom|the <t> rolled into a deep hole. `I am afraid of the dark,` "
    "said <h>. Along came a <l=nature> <z=digger> named <k+name>. `Leave it to me,` said <k> the <z>, and {into|down} "
    "the hole <k he> went, deeper and deeper}. {In no time|Before you could count to ten|After a long while} <k he> "
    "came back with the <t>. `{How brave you are|How can I thank you|You are a true friend}, <k>!` said <h>. `My <r> "
    "gave me this <t>.` `{I am always glad to help|It was nothing|Any <z> can do that},` said <k>. `But I am hungry "
    "now.` So they went to the house <o>, and <h> gave <k> a <g=food>. <k> the <z> ate the whole <g>. ",

    /* Two gifts in a basket, one of them given away on the road. */
    "put the <c> <t> into a basket with a <g=food>. With the <t> and the <g> <h he> went to see <f+name> the "
    "<y=animal>, who was ill in bed near the <p=place>. On the way to the <p> <h he> met a <l=nature> <z=animal> "
    "named <k+name>. <k> the <z> was crying. `{I have had nothing to eat since yesterday,` said <k>. So <h> opened "
    "the basket and gave <k> the <g>. When <h he> came to the <p>, there was only the <t> in the basket. `{I have "
    "brought you|You shall have} my <t>,` said <h> to <f>. `It was a gift from my <r>.` <f> {forgot that <f he> was "
    "ill|sat up and smiled}. So <f> had the <t>, <k> had the <g>|I am all alone and have nothing to play with,` said "
    "<k>. So <h> opened the basket and gave <k> the <t>. When <h he> came to the <p>, there was only the <g> in the "
    "basket. `{I have brought you|You shall have} a <g>,` said <h> to <f>. <f> {ate the <g> and felt much "
    "better|forgot that <f he> was ill}. So <f> had the <g>, <k> had the <t>}, and <h> had an empty basket and two "
    "happy friends. ",
};
enum { N_PLOT = sizeof story_plots / sizeof *story_plots };

static const char story_ending[] =
    "{That night|When the stars came out|At bedtime}, in the little house <o>, <h> the <s> {dreamed of the "
    "<p>|dreamed of a <b=color> <t>|told <h his> <r> all about it}.";

/* A story being told (script is NULL) or read: then its choices are those that the script shows. */
typedef struct {
    const char *script;
    char text[4096];
    size_t n;                      /* letters of text */
    double nats;                   /* -log of the probability of the choices so far */
    const char *called['z' + 1];   /* called['h']: what <h> is, a place in one of the lists */
    int slipped;                   /* reading: no single alternative fits the script */
    uint64_t rng;
} Story;

/* Writes the template t to `out` up to the next choice or the end; returns where it stopped. */
static const char *story_plain(const Story *s, const char *t, char *out) {
    static const char *const pronoun[][2] = {{"he", "she"}, {"him", "her"}, {"his", "her"}, {"He", "She"},
                                              {"His", "Her"}};
    for (; strchr("{|}/", *t) == NULL; t++) { /* which the final 0 ends too */
        if (*t != '<') {
            *out++ = *t == '`' ? '"' : *t;
        } else if (t[2] == '=' || t[2] == '+') {
            break;
        } else {
            const char *called = s->called[(int)t[1]];
            size_t n = strcspn(called, "|/"), form = 0;
            if (t[2] == '>') {
                memcpy(out, called, n);
            } else {
                while (strncmp(pronoun[form][0], t + 3, strcspn(t, ">") - 3) != 0) form++;
                called = pronoun[form][called[n + 1] == 's'], n = strlen(called);
                memcpy(out, called, n);
            }
            out += n;
            t = strchr(t, '>');
        }
    }
    *out = 0;
    return t;
}

/* The alternatives from t on, each an element of at[]; returns how many. *end: where they end. */
static int story_alternatives(const char *t, const char *at[64], const char **end) {
    int n = 1, depth = 0;
    for (at[0] = t; *t != 0 && (*t != '}' || depth > 0); t++) {
        depth += (*t == '{') - (*t == '}');
        if (*t == '|' && depth == 0) at[n++] = t + 1;
    }
    *end = t;
    return n;
}

/* One of n alternatives, each equally probable. */
static const char *story_choose(Story *s, const char *const at[], int n) {
    char head[sizeof s->text];
    const char *chosen = NULL;
    int fitting = 0;
    if (s->slipped) return "";
    s->nats += log(n);
    if (s->script == NULL) return at[random_bits(&s->rng) % (uint64_t)n];
    for (int i = 0; i < n; i++) {
        story_plain(s, at[i], head);
        if (strncmp(s->script + s->n, head, strlen(head)) == 0) chosen = at[i], fitting++;
    }
    if (fitting == 1) return chosen;
    s->slipped = 1;
    return "";
}

/* Those of n alternatives that nothing in the story is called yet; returns how many. */
static int story_unused(const Story *s, const char *at[], int n) {
    int unused = 0;
    for (int i = 0; i < n; i++) {
        size_t length = strcspn(at[i], "|/");
        int used = 0;
        for (const char *const *c = s->called + 'a'; c <= s->called + 'z'; c++)
            used |= *c != NULL && strncmp(*c, at[i], length) == 0 && strchr("|/", (*c)[length]) != NULL;
        if (!used) at[unused++] = at[i];
    }
    return unused;
}

/* Tells the template from t to its end, or to where a reader slips. */
static void story_tell(Story *s, const char *t) {
    while (!s->slipped) {
        const char *at[64], *end, *chosen;
        char *out = s->text + s->n;
        int n, list = 0;
        t = story_plain(s, t, out);
        while (*out != 0 && (s->script == NULL || *out == s->script[s->n])) out++, s->n++;
        if (*out != 0) {
            s->slipped = 1;
        } else if (*t == '{') {
            n = story_alternatives(t + 1, at, &end);
            story_tell(s, story_choose(s, at, n));
            t = end + 1;
        } else if (*t == '<') {
            while (strncmp(story_list[list][0], t + 3, strcspn(t, ">") - 3) != 0) list++;
            n = story_alternatives(story_list[list][1], at, &end);
            if (t[2] == '+') n = story_unused(s, at, n);
            chosen = story_choose(s, at, n);
            s->called[(int)t[1]] = chosen;
            story_tell(s, chosen);
            t = strchr(t, '>') + 1;
        } else {
            return;
        }
    }
}

static void story(Story *s) {
    story_tell(s, story_opening);
    story_tell(s, story_choose(s, story_plots, N_PLOT));
    story_tell(s, story_ending);
}

/* Tells a new story; rng is any number. */
static void story_write(Story *s, uint64_t rng) {
    memset(s, 0, sizeof *s);
    s->rng = rng;
    story(s);
}

/* Reads a text as a story. Returns 1 if it is one; s->nats is then -log of its probability. Otherwise 0, and the first
   s->n letters are how some story begins. */
static int story_read(Story *s, const char *text) {
    memset(s, 0, sizeof *s);
    s->script = text;
    story(s);
    return !s->slipped && text[s->n] == 0;
}

/* 2. OPTIONS =================================================================================================== */

static struct {
    const char *data, *dir, *init, *selective, *tokenizer, *device, *dtype;
    long long d_model, n_layer, d_state, d_conv, expand, dt_rank, vocab_size, stories, items;
    long long batch, len, accumulate, steps, stop, seed, threads;
    long long log_every, eval_every, eval_tokens, sample_every, sample_tokens, save_every;
    double minutes, lr, lr_min, warmup, weight_decay, beta1, beta2, clip, held_out, until, temperature, top_p;
    int untied, every_token, resume, lean, help;
} o;

typedef enum { OPT_FLAG, OPT_INT, OPT_REAL, OPT_TEXT } Kind;

/* On --resume, the value that the run began with holds; or it does unless another is given; or none was stored. */
typedef enum { FIXED, FREE, UNSTORED } Resumed;

static const struct Option {
    const char *name, *argument;
    Kind kind;
    void *value;
    const char *initial;           /* as if given; NULL: none */
    double low, high;
    Resumed resumed;
    const char *help;
} option[] = {
    {"DATA", "", OPT_TEXT, &o.data, NULL, 0, 0, FREE, "a text file; or built in: stories, copying, induction, recall"},
    {"-o", "DIR", OPT_TEXT, &o.dir, NULL, 0, 0, UNSTORED, "directory for what the run leaves"},
    {"--resume", "", OPT_FLAG, &o.resume, "0", 0, 1, UNSTORED, "go on with the run in DIR, with its options"},
    {"--init", "DIR", OPT_TEXT, &o.init, NULL, 0, 0, FIXED, "start from this checkpoint's weights and tokenizer"},
    {"--steps", "N", OPT_INT, &o.steps, "0", 0, 1e9, FIXED, "length of the run in steps; 0: see --minutes"},
    {"--minutes", "M", OPT_REAL, &o.minutes, "10", 0.01, 1e6, FIXED, "length of the run; the rate decays with time"},
    {"--until", "A", OPT_REAL, &o.until, "0", 0, 1, FREE, "of a task: end with this share of right answers; 0: do not"},
    {"--stop", "N", OPT_INT, &o.stop, "0", 0, 1e9, UNSTORED, "stop for now after step N, as by Ctrl-C; 0: do not"},

    {"--d-model", "N", OPT_INT, &o.d_model, "128", 1, 1 << 14, FIXED, "width of the model"},
    {"--n-layer", "N", OPT_INT, &o.n_layer, "2", 1, 1 << 10, FIXED, "blocks"},
    {"--d-state", "N", OPT_INT, &o.d_state, "16", 1, 256, FIXED, "states per channel"},
    {"--d-conv", "N", OPT_INT, &o.d_conv, "4", 1, 8, FIXED, "taps of the convolution"},
    {"--expand", "N", OPT_INT, &o.expand, "2", 1, 8, FIXED, "channels in a block per unit of width"},
    {"--dt-rank", "N", OPT_INT, &o.dt_rank, "0", 0, 1 << 12, FIXED, "rank of delta's projection; 0: d-model / 16"},
    {"--selective", "LIST", OPT_TEXT, &o.selective, "all", 0, 0, FIXED,
     "what depends on the token: all, none, or as in delta,B"},
    {"--untied", "", OPT_FLAG, &o.untied, "0", 0, 1, FIXED, "a head of its own, not the embedding"},

    {"--tokenizer", "NAME", OPT_TEXT, &o.tokenizer, NULL, 0, 0, FIXED, "tokenizer.bin or .json, or bytes (else: ours)"},
    {"--vocab-size", "N", OPT_INT, &o.vocab_size, "0", 0, 1 << 20, FIXED, "train a tokenizer on DATA; or of a task"},
    {"--items", "N", OPT_INT, &o.items, "0", 0, MAX_ITEMS, FIXED, "of a task: how many to remember; 0: as published"},
    {"--every-token", "", OPT_FLAG, &o.every_token, "0", 0, 1, FIXED, "of a task: learn not only the answers"},
    {"--held-out", "F", OPT_REAL, &o.held_out, "0.1", 0.0001, 0.9, FIXED, "share of DATA, its end, that is held out"},
    {"--stories", "N", OPT_INT, &o.stories, "10000", 10, 1e7, FIXED, "how many stories there are"},

    {"--batch", "N", OPT_INT, &o.batch, "4", 1, 1 << 20, FIXED, "windows at once"},
    {"--len", "N", OPT_INT, &o.len, "0", 0, 1 << 24, FIXED, "tokens in a window; 0: 512, or a task's published length"},
    {"--accumulate", "N", OPT_INT, &o.accumulate, "1", 1, 1 << 20, FIXED, "batches in a step"},
    {"--lr", "R", OPT_REAL, &o.lr, "0.005", 0, 10, FIXED, "peak learning rate"},
    {"--lr-min", "R", OPT_REAL, &o.lr_min, "0.00001", 0, 10, FIXED, "learning rate at the end, after half a cosine"},
    {"--warmup", "F", OPT_REAL, &o.warmup, "0.05", 0, 1, FIXED, "share of the run in which the rate rises"},
    {"--weight-decay", "R", OPT_REAL, &o.weight_decay, "0.1", 0, 10, FIXED, "of AdamW, on matrices only"},
    {"--beta1", "R", OPT_REAL, &o.beta1, "0.9", 0, 0.99999, FIXED, "of AdamW"},
    {"--beta2", "R", OPT_REAL, &o.beta2, "0.95", 0, 0.99999, FIXED, "of AdamW"},
    {"--clip", "R", OPT_REAL, &o.clip, "1", 0, 1e9, FIXED, "largest norm of the gradient; 0: any"},
    {"--seed", "N", OPT_INT, &o.seed, "1", 0, 9e15, FIXED, "of weights, windows and samples"},

    {"--log-every", "N", OPT_INT, &o.log_every, "10", 1, 1e9, FREE, "steps between lines of DIR/log.csv"},
    {"--eval-every", "N", OPT_INT, &o.eval_every, "100", 0, 1e9, FREE, "steps between evaluations; 0: only at the end"},
    {"--eval-tokens", "N", OPT_INT, &o.eval_tokens, "20000", 0, 1e15, FREE, "tokens in each but the last; 0: all"},
    {"--sample-every", "N", OPT_INT, &o.sample_every, "200", 0, 1e9, FREE, "steps between samples; 0: only at the end"},
    {"--sample-tokens", "N", OPT_INT, &o.sample_tokens, "400", 1, 1 << 20, FREE, "length of a sample"},
    {"--temperature", "T", OPT_REAL, &o.temperature, "1", 0, 100, FREE, "of samples"},
    {"--top-p", "P", OPT_REAL, &o.top_p, "0.9", 0, 1, FREE, "of samples: only the tokens that make up P in sum"},
    {"--save-every", "N", OPT_INT, &o.save_every, "1000", 0, 1e9, FREE, "steps between saves; 0: only at the end"},

    {"--device", "NAME", OPT_TEXT, &o.device, "auto", 0, 0, FREE, "cpu, cuda, or auto: cuda if there is one"},
    {"--dtype", "NAME", OPT_TEXT, &o.dtype, NULL, 0, 0, FIXED, "on a GPU: fp32, tf32 or bf16"},
    {"--lean", "", OPT_FLAG, &o.lean, "0", 0, 1, FREE, "on a GPU: less memory, by computing activations twice"},
    {"--threads", "N", OPT_INT, &o.threads, "0", 0, 1024, FREE, "on the CPU; 0: as many as there are cores"},
    {"--help", "", OPT_FLAG, &o.help, "0", 0, 1, UNSTORED, "this"},
};
enum { N_OPTION = sizeof option / sizeof *option };

static const char *option_text[N_OPTION]; /* as given, stored or initial */
static int option_given[N_OPTION];

static const char *const conflict[][2] = {
    {"--steps", "--minutes"}, {"--tokenizer", "--vocab-size"}, {"--init", "--vocab-size"}, {"--init", "--d-model"},
    {"--init", "--n-layer"}, {"--init", "--d-state"}, {"--init", "--d-conv"}, {"--init", "--expand"},
    {"--init", "--dt-rank"}, {"--init", "--untied"}, {"--init", "--selective"},
};

static void print_usage(void) {
    printf("./train [options] DATA -o DIR      trains a model; sample from it with ./run DIR\n");
    for (int i = 0; i < N_OPTION; i++) {
        const struct Option *p = &option[i];
        int width = printf("  %s %s", p->name, p->argument);
        printf("%*s%s", 24 - width, "", p->help);
        if (p->initial != NULL && p->kind != OPT_FLAG) printf(" (default: %s)", p->initial);
        printf("\n");
    }
}

static int set_option(int i, const char *text) {
    const struct Option *p = &option[i];
    char *end = NULL;
    double value = 0;
    if (p->kind == OPT_TEXT) *(const char **)p->value = text;
    else value = strtod(text, &end);
    if (p->kind == OPT_FLAG) *(int *)p->value = value != 0;
    if (p->kind == OPT_REAL) *(double *)p->value = value;
    if (p->kind == OPT_INT && value >= p->low && value <= p->high) *(long long *)p->value = (long long)value;
    if (end != NULL && (end == text || *end != 0 || !(value >= p->low && value <= p->high) ||
                        (p->kind == OPT_INT && value != floor(value))))
        return fail("option %s: '%s' is not a %s from %.12g to %.12g", p->name, text,
                    p->kind == OPT_INT ? "whole number" : "number", p->low, p->high);
    option_text[i] = text;
    return 0;
}

static int find_option(const char *name) {
    int i = 0;
    while (i < N_OPTION && strcmp(option[i].name, name) != 0) i++;
    return i;
}

static int parse_options(int argc, char **argv) {
    for (int i = 0; i < N_OPTION; i++)
        if (option[i].initial != NULL && set_option(i, option[i].initial) != 0) return -1;
    for (int i = 1; i < argc; i++) {
        int k = argv[i][0] == '-' ? find_option(argv[i]) : 0; /* option 0 is DATA */
        if (k == N_OPTION) return fail("option %s: there is none of this name; see --help", argv[i]);
        if (k == 0 && option_given[0]) return fail("one DATA is expected, got %s and %s", o.data, argv[i]);
        if (option[k].argument[0] != 0 && ++i == argc)
            return fail("option %s: expected %s", option[k].name, option[k].argument);
        if (set_option(k, option[k].kind == OPT_FLAG ? "1" : argv[i]) != 0) return -1;
        option_given[k] = 1;
    }
    if (o.help) return 0;
    for (size_t i = 0; i < sizeof conflict / sizeof *conflict; i++)
        if (option_given[find_option(conflict[i][0])] && option_given[find_option(conflict[i][1])])
            return fail("options %s and %s do not go together", conflict[i][0], conflict[i][1]);
    if (o.data == NULL && !o.resume) return fail("DATA is expected: a text file, stories or a task; see --help");
    return o.dir != NULL && o.dir[0] != 0 ? 0 : fail("option -o: a directory for the model is expected; see --help");
}

/* Takes over the value of an option that the run in DIR began with; `path` is where it was stored. */
static int resume_option(int i, const char *stored, const char *path) {
    const struct Option *p = &option[i];
    int differs = option_given[i] && strcmp(option_text[i], stored) != 0;
    if (p->kind != OPT_TEXT) differs = option_given[i] && strtod(option_text[i], NULL) != strtod(stored, NULL);
    if (p->resumed == UNSTORED || (p->resumed == FREE && option_given[i])) return 0;
    if (differs)
        return fail("%s: the run began with %s %s and cannot go on with %s; --init %s starts a new one from its "
                    "weights", path, p->name, stored, option_text[i], o.dir);
    return set_option(i, stored) != 0 ? fail_in(path) : 0;
}

/* 3. DATA ====================================================================================================== */

/* A row of the held-out text, to measure the model on: ids[start] ... are fed, and those that follow the positions from
   <= t < to are to be predicted. The rows together predict every held-out token once. */
typedef struct {
    long start;
    int from, to;
    double nats;                   /* of stories: their exact entropy */
} Row;

typedef struct DataKind DataKind;

typedef struct {
    const DataKind *kind;
    Tokenizer tokenizer;           /* of a task: none */
    int n_vocab;
    Task task;                     /* task.len is 0: a text or stories */
    int *ids, is_stories, has_ends; /* has_ends: there is an <|endoftext|> in the training part */
    long n, n_train;               /* ids; of them, those to train on, which come first */
    uint64_t hash;                 /* of the text: --resume needs the same */
    Row *row;
    int n_row, row_len;
    int *fed, *wanted;             /* (EVAL_STREAMS, row_len) */
} Data;

/* What was measured on held-out data, in sum; n_tokens is 0 before. floor: the stories' own entropy. Of a task the
   tokens are the answers. */
typedef struct { double nats, floor; long n_tokens, n_bytes, right, n_samples, samples_right; } Score;

/* What DATA can be. load: the data, or settings; draw: a batch to train on, tokens, targets: (batch, len); measure: on
   data that is held out, on all of it or on about `limit` tokens if that is not 0. Ctrl-C ends measuring early.
   refused: options without an effect, but for those that tutorial/lab.sh gives to stories and tasks alike. */
struct DataKind {
    int (*load)(Data *d, const char *program);
    void (*draw)(Data *d, uint64_t *rng, int *tokens, int *targets);
    int (*measure)(Data *d, const Backend *backend, long long limit, Score *sum);
    const char *refused[6];        /* then a NULL */
};

enum { EVAL_STREAMS = 16 };

static volatile sig_atomic_t interrupted;

static void data_free(Data *d) {
    tokenizer_free(&d->tokenizer);
    free(d->ids);
    release(d->row);
    release(d->fed), release(d->wanted);
}

/* The vocabulary of a run: its own, or as told, or the checkpoint's, or the default, beside this program or here. */
static int choose_tokenizer(Tokenizer *t, const char *program, const char *text, size_t n) {
    enum { STORY_VOCAB = 1000 }; /* nearly every word of the stories is a token */
    char path[PATH_SIZE], why[sizeof error_message];
    const char *slash = strrchr(program, '/');
    int dir_length = slash != NULL ? (int)(slash - program) : 1, is_stories = strcmp(o.data, "stories") == 0;
    if (o.resume) return tokenizer_load_dir(t, o.dir);
    if (o.tokenizer != NULL && strcmp(o.tokenizer, "bytes") == 0) return tokenizer_bytes(t);
    if (o.tokenizer != NULL) return tokenizer_load(t, o.tokenizer);
    if (o.init != NULL) return tokenizer_load_dir(t, o.init);
    if (o.vocab_size > 0 || is_stories) {
        if (tokenizer_train(t, text, n, o.vocab_size > 0 ? (int)o.vocab_size : STORY_VOCAB) == 0) return 0;
        snprintf(why, sizeof why, "%s", error_message);
        return fail("%s: option --vocab-size: %s", o.data, why);
    }
    snprintf(path, sizeof path, "%.*s/tokenizer.bin", dir_length, slash != NULL ? program : ".");
    if (tokenizer_load(t, path) == 0 || tokenizer_load(t, "tokenizer.bin") == 0) return 0;
    snprintf(why, sizeof why, "%s", error_message);
    return fail("%s (choose a vocabulary with --tokenizer or --vocab-size)", why);
}

static const uint64_t FNV_START = 14695981039346656037u;

static uint64_t hash_bytes(uint64_t hash, const char *text, size_t n) { /* FNV-1a */
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)text[i]) * 1099511628211u;
    return hash;
}

static void add_row(Data *d, long start, int from, int to) {
    Row *row = &d->row[d->n_row++];
    row->start = start, row->from = from, row->to = to, row->nats = 0;
    if (to > d->row_len) d->row_len = to;
}

/* A text file; its end is held out. Each row predicts a window's length of tokens with the window before as context. */
static int load_text(Data *d, const char *program) {
    size_t n, n_train;
    char *text = read_file(o.data, &n);
    long more = -1;
    if (text == NULL) return -1;
    n_train = n - (size_t)((double)n * o.held_out);
    while (n_train < n && (text[n_train] & 0xc0) == 0x80) n_train++; /* not within a UTF-8 character */
    d->hash = hash_bytes(FNV_START, text, n);
    if (choose_tokenizer(&d->tokenizer, program, text, n_train) == 0) {
        d->ids = (int *)malloc((tokenizer_room(&d->tokenizer, n) + 1) * sizeof(int));
        if (d->ids == NULL) fail("%s: out of memory: %zu bytes of text", o.data, n);
        else more = d->n_train = tokenizer_encode(&d->tokenizer, text, n_train, d->ids);
    }
    if (more >= 0) more = tokenizer_encode(&d->tokenizer, text + n_train, n - n_train, d->ids + d->n_train);
    release(text);
    if (more < 0) return -1;
    d->n = d->n_train + more;
    if (d->n_train <= o.len || more == 0)
        return fail("%s: %ld tokens to train on and %ld held out are too few for windows of --len %lld", o.data,
                    d->n_train, more, o.len);
    d->row = (Row *)allocate((size_t)(more / o.len + 1), sizeof *d->row);
    if (d->row == NULL) return -1;
    for (long first = d->n_train; first < d->n; first += (long)o.len) {
        long last = first + (long)o.len < d->n ? first + (long)o.len : d->n; /* predicts ids[first] to ids[last - 1] */
        long start = first > (long)o.len ? first - 1 - (long)o.len : 0;
        add_row(d, start, (int)(first - 1 - start), (int)(last - 1 - start));
    }
    return 0;
}

/* Stories, each after an <|endoftext|>. A row holds as many whole ones as a window does, but at least one. The
   vocabulary is learned from other stories. */
static int load_stories(Data *d, const char *program) {
    enum { FOR_VOCAB = 1000 };
    static Story s;
    size_t room = 0, n_text = 0;
    char *text = (char *)allocate(FOR_VOCAB, sizeof s.text);
    long n_train = (long)((double)o.stories * (1 - o.held_out)), more;
    int failed;
    d->hash = FNV_START;
    if (text == NULL) return -1;
    for (long k = 0; k < FOR_VOCAB; k++, n_text += s.n) {
        story_write(&s, (uint64_t)(o.stories + k));
        memcpy(text + n_text, s.text, s.n);
    }
    failed = choose_tokenizer(&d->tokenizer, program, text, n_text);
    release(text);
    if (failed) return -1;
    if (d->tokenizer.end_of_text < 0) return fail("option --tokenizer: stories need one that has %s", END_OF_TEXT);
    d->row = (Row *)allocate((size_t)(o.stories - n_train), sizeof *d->row);
    if (d->row == NULL) return -1;
    for (long k = 0; k < o.stories; k++) {
        Row *row = d->n_row > 0 ? &d->row[d->n_row - 1] : NULL;
        int *ids = d->ids;
        long start = d->n;
        if ((size_t)d->n + tokenizer_room(&d->tokenizer, sizeof s.text) + 2 > room) {
            room = 2 * ((size_t)d->n + tokenizer_room(&d->tokenizer, sizeof s.text));
            ids = (int *)realloc(d->ids, room * sizeof(int));
            if (ids == NULL) return fail("out of memory: %zu tokens of stories", room);
            d->ids = ids;
        }
        story_write(&s, (uint64_t)k);
        d->hash = hash_bytes(d->hash, s.text, s.n);
        ids[d->n++] = d->tokenizer.end_of_text;
        more = tokenizer_encode(&d->tokenizer, s.text, s.n, ids + d->n);
        if (more < 0) return -1;
        d->n += more;
        if (k < n_train) d->n_train = d->n;
        if (k < n_train) continue;
        if (row == NULL || d->n - row->start > o.len) add_row(d, start, 0, (int)(d->n - start));
        else row->to = (int)(d->n - row->start);
        d->row[d->n_row - 1].nats += s.nats;
        if (d->row[d->n_row - 1].to > d->row_len) d->row_len = d->row[d->n_row - 1].to;
    }
    d->ids[d->n++] = d->tokenizer.end_of_text;
    if (d->n_train > o.len) return 0;
    return fail("stories: %ld tokens to train on are too few for windows of --len %lld; tell more with --stories",
                d->n_train, o.len);
}

/* Random windows to train on; the targets are the tokens, one later. A window of stories goes back to where a story
   begins, if that is near enough to keep the token that it was drawn at. In a text that has no <|endoftext|>, one
   window in 8 begins with one, in place of its first token, so that the model learns to begin a text.
   tokens, targets: (batch, len) */
static void draw_windows(Data *d, uint64_t *rng, int *tokens, int *targets) {
    int end = d->tokenizer.end_of_text;
    for (long long b = 0; b < o.batch; b++) {
        long drawn = (long)(random_bits(rng) % (uint64_t)(d->n_train - o.len)), start = drawn;
        int *window = tokens + b * o.len, is_first = random_bits(rng) % 8 == 0;
        while (d->is_stories && d->ids[start] != end && drawn - start < o.len) start--;
        if (d->is_stories && d->ids[start] != end) start = drawn;
        memcpy(window, d->ids + start, (size_t)o.len * sizeof *window);
        memcpy(targets + b * o.len, d->ids + start + 1, (size_t)o.len * sizeof *window);
        if (is_first && !d->has_ends && end >= 0) window[0] = end;
    }
}

/* On the held-out rows, or on as many of them, evenly spread, as have about `limit` tokens. */
static int measure_rows(Data *d, const Backend *backend, long long limit, Score *sum) {
    long n_token = d->n - d->n_train, n_row = d->n_row, width = d->row_len;
    if (limit > 0 && limit < n_token) n_row = (long)((double)n_row * (double)limit / (double)n_token) + 1;
    for (long first = 0; first < n_row && (!interrupted || first == 0); first += EVAL_STREAMS) {
        int streams = n_row - first < EVAL_STREAMS ? (int)(n_row - first) : EVAL_STREAMS;
        long before = sum->n_tokens;
        double loss;
        for (int b = 0; b < streams; b++) {
            const Row *row = &d->row[(first + b) * d->n_row / n_row];
            for (long t = 0; t < width; t++) {
                int is_wanted = t >= row->from && t < row->to;
                size_t bytes;
                d->fed[b * width + t] = t < row->to ? d->ids[row->start + t] : 0;
                d->wanted[b * width + t] = is_wanted ? d->ids[row->start + t + 1] : -1;
                if (!is_wanted) continue;
                tokenizer_piece(&d->tokenizer, d->ids[row->start + t + 1], &bytes);
                sum->n_tokens++, sum->n_bytes += (long)bytes;
            }
            sum->floor += row->nats;
        }
        if (backend->reset(backend->self, streams) != 0 ||
            backend->evaluate(backend->self, d->fed, d->wanted, (int)width, &loss, NULL) != 0) return -1;
        sum->nats += loss * (double)(sum->n_tokens - before);
    }
    return 0;
}

/* A task has no end of samples: each is a seed. Those to train on are drawn from 2^64, those held out are 0, 1, 2...
   The vocabulary is that of the model that the run goes on with, if there is one. */
static int load_task(Data *d, const char *program) {
    const char *checkpoint = o.resume ? o.dir : o.init;
    Config c;
    (void)program;
    c.vocab_size = (int)o.vocab_size;
    if (checkpoint != NULL && config_load(&c, checkpoint) != 0) return -1;
    if (task_create(&d->task, task_find(o.data), o.len, c.vocab_size, o.items) != 0) return -1;
    o.len = d->row_len = d->task.len;
    d->n_vocab = d->task.vocab, d->tokenizer.end_of_text = -1;
    d->hash = hash_bytes(FNV_START, o.data, strlen(o.data));
    return 0;
}

static void draw_samples(Data *d, uint64_t *rng, int *tokens, int *targets) {
    for (long long b = 0; b < o.batch; b++, tokens += o.len, targets += o.len) {
        task_begin(&d->task, random_bits(rng));
        task_read(&d->task, tokens, targets, (int)o.len);
        for (long long t = 0; o.every_token && t + 1 < o.len; t++)
            if (targets[t] < 0) targets[t] = tokens[t + 1];
    }
}

/* All is 500 samples, or as many as have 2^20 tokens. */
static int measure_samples(Data *d, const Backend *backend, long long limit, Score *sum) {
    long long fitting = ((limit > 0 ? limit : 1 << 20) + o.len - 1) / o.len;
    long n = limit > 0 || fitting < 500 ? (long)fitting : 500, right;
    double loss;
    for (long k = 0; k < n && (!interrupted || k == 0); k++) {
        int questions;
        task_begin(&d->task, (uint64_t)k);
        questions = task_read(&d->task, d->fed, d->wanted, (int)o.len);
        if (backend->reset(backend->self, 1) != 0 ||
            backend->evaluate(backend->self, d->fed, d->wanted, (int)o.len, &loss, &right) != 0) return -1;
        sum->nats += loss * questions, sum->n_tokens += questions, sum->right += right;
        sum->n_samples++, sum->samples_right += right == questions;
    }
    return 0;
}

static const DataKind data_text = {load_text, draw_windows, measure_rows,
                                   {"--items", "--every-token", "--until", "--stories", NULL}};
static const DataKind data_stories = {load_stories, draw_windows, measure_rows,
                                      {"--items", "--every-token", "--until", NULL}};
static const DataKind data_task = {load_task, draw_samples, measure_samples,
                                   {"--stories", "--tokenizer", "--held-out", "--temperature", "--top-p", NULL}};

static int load_data(Data *d, const char *program) {
    d->is_stories = strcmp(o.data, "stories") == 0;
    d->kind = d->is_stories ? &data_stories : task_find(o.data) < N_TASK ? &data_task : &data_text;
    for (const char *const *name = d->kind->refused; *name != NULL; name++)
        if (option_given[find_option(*name)]) return fail("option %s: it has no effect on %s", *name, o.data);
    if (o.len == 0 && d->kind != &data_task) o.len = 512;
    if (d->kind->load(d, program) != 0) return -1;
    if (d->task.len == 0) d->n_vocab = d->tokenizer.n_vocab;
    for (long i = 0; i < d->n_train; i++) d->has_ends |= d->ids[i] == d->tokenizer.end_of_text;
    d->fed = (int *)allocate((size_t)EVAL_STREAMS * (size_t)d->row_len, sizeof(int));
    d->wanted = (int *)allocate((size_t)EVAL_STREAMS * (size_t)d->row_len, sizeof(int));
    return d->fed != NULL && d->wanted != NULL ? 0 : -1;
}

/* 4. THE RUN =================================================================================================== */

/* The first Ctrl-C asks for a stop; a second one is no longer caught. */
static void on_signal(int number) {
    interrupted = 1;
    signal(number, SIG_DFL);
}

static double seconds(void) {
    struct timespec now;
#ifdef _WIN32
    timespec_get(&now, TIME_UTC);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int terminal_width(void) {
#ifdef TIOCGWINSZ
    struct winsize size;
    if (ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
    return 80;
}

typedef struct {
    Data data;
    Model model;
    Backend backend;
    AdamW adamw;
    long step, begun_at;           /* steps done; those before this sitting */
    uint64_t rng;                  /* draws the windows */
    double earlier, started;       /* seconds in sittings before; when this one started */
    double stepping, spoken;       /* seconds spent in steps; when the last line was printed */
    double rate, loss, norm;       /* of the last step that was asked for them */
    Score score;                   /* the last one */
    int *tokens, *targets;         /* (batch, len) */
    real *moment1, *moment2;
    FILE *log;
    int has_backend, is_terminal;
    int over, reached;             /* was the step the last one? Are as many answers right as --until asks for? */
} Run;

static double elapsed(const Run *r) { return r->earlier + seconds() - r->started; }

static double tokens_per_step(void) { return (double)(o.batch * o.len * o.accumulate); }

static int is_over(const Run *r) { return o.steps > 0 ? r->step >= o.steps : elapsed(r) >= 60 * o.minutes; }

static int is_done(const Run *r) { return r->reached || r->over; }

static int is_due(const Run *r, long long every) { return every > 0 && r->step % every == 0; }

/* One step. Only where it is reported is the loss asked for, so that a GPU need not wait for it at every step. */
static int take_step(Run *r) {
    const Backend *backend = &r->backend;
    double before = seconds(), *loss = NULL, *norm = NULL;
    long done = o.steps > 0 ? r->step : (long)(1000 * elapsed(r)); /* of a total, in steps or milliseconds */
    long total = o.steps > 0 ? (long)o.steps : (long)(60000 * o.minutes);
    r->rate = learning_rate(done + 1, (long)(o.warmup * (double)total), total, o.lr, o.lr_min < o.lr ? o.lr_min : o.lr);
    for (long long i = 0; i < o.accumulate; i++) {
        r->data.kind->draw(&r->data, &r->rng, r->tokens, r->targets);
        if (backend->gradient(backend->self, r->tokens, r->targets, (int)o.batch, (int)o.len, 1.0 / o.accumulate) != 0)
            return -1;
    }
    r->step++;
    r->over = is_over(r);
    if (is_due(r, o.log_every) || is_due(r, o.eval_every) || r->over) loss = &r->loss, norm = &r->norm;
    if (backend->update(backend->self, &r->adamw, r->rate, r->step, loss, norm) != 0) return -1;
    r->stepping += seconds() - before;
    if (loss != NULL && !isfinite(*loss)) return fail("step %ld: the loss is not finite; try a smaller --lr", r->step);
    return 0;
}

static int evaluate(Run *r, long long limit) {
    const Score *s = &r->score;
    memset(&r->score, 0, sizeof r->score);
    if (r->data.kind->measure(&r->data, &r->backend, limit, &r->score) != 0) return -1;
    r->reached = r->data.task.len > 0 && o.until > 0 && (double)s->right >= o.until * (double)s->n_tokens;
    return 0;
}

static double per_token(double nats, const Score *s) { return nats / (double)s->n_tokens; }
static double bits_per_byte(double nats, const Score *s) { return nats / (double)s->n_bytes / log(2); }

static void print_duration(char *out, size_t size, double s) {
    long t = s > 0 ? (long)(s + 0.5) : 0;
    if (t < 3600) snprintf(out, size, "%ld:%02ld", t / 60, t % 60);
    else snprintf(out, size, "%ld:%02ld:%02ld", t / 3600, t / 60 % 60, t % 60);
}

/* The line of progress: on a terminal always the same one, else one more. */
static void print_progress(Run *r) {
    const Score *s = &r->score;
    char line[512], left[32];
    double steps = (double)(r->step - r->begun_at), speed = steps * tokens_per_step() / r->stepping;
    double to_go = 60 * o.minutes - elapsed(r);
    int n;
    if (o.steps > 0) to_go = (double)(o.steps - r->step) / steps * (seconds() - r->started);
    print_duration(left, sizeof left, to_go);
    n = snprintf(line, sizeof line, "step %ld  %s left  %.0f tokens/s  loss %.3f", r->step, left, speed, r->loss);
    if (s->n_tokens > 0 && r->data.task.len > 0)
        snprintf(line + n, sizeof line - (size_t)n,
                 "  held-out %.3f nats/answer, right %.2f%% of answers (chance %.2f%%), %.2f%% of samples",
                 per_token(s->nats, s), 100 * per_token((double)s->right, s), 100.0 / r->data.task.n_answer,
                 100 * (double)s->samples_right / (double)s->n_samples);
    else if (s->n_tokens > 0)
        n += snprintf(line + n, sizeof line - (size_t)n, "  held-out %.3f nats/token, %.3f bits/byte",
                      per_token(s->nats, s), bits_per_byte(s->nats, s));
    if (s->n_tokens > 0 && r->data.is_stories)
        snprintf(line + n, sizeof line - (size_t)n, " (floor %.3f, %.3f)", per_token(s->floor, s),
                 bits_per_byte(s->floor, s));
    if (r->is_terminal) printf("\r%.*s\033[K", terminal_width() - 1, line);
    else printf("%s\n", line);
    fflush(stdout);
    r->spoken = seconds();
}

static int write_log(Run *r, int measured) {
    const Score *s = &r->score;
    fprintf(r->log, "%ld,%.0f,%.2f,%.6g,%.5f,%.5f,", r->step, (double)r->step * tokens_per_step(), elapsed(r), r->rate,
            r->loss, r->norm);
    if (measured) fprintf(r->log, "%.5f", per_token(s->nats, s));
    fputc(',', r->log);
    if (measured && s->n_bytes > 0) fprintf(r->log, "%.5f", bits_per_byte(s->nats, s));
    fputc(',', r->log);
    if (measured && r->data.is_stories) fprintf(r->log, "%.5f", per_token(s->floor, s));
    if (measured && s->n_samples > 0)
        fprintf(r->log, ",%.5f,%.5f\n", per_token((double)s->right, s),
                (double)s->samples_right / (double)s->n_samples);
    else fprintf(r->log, ",,\n");
    return fflush(r->log) == 0 && !ferror(r->log) ? 0 : fail("%s/log.csv: cannot write: %s", o.dir, strerror(errno));
}

/* Samples n texts at once. out: (n, sample_tokens) */
static int generate(Run *r, int *out, int n) {
    Sampler sampler[EVAL_STREAMS];
    int start[EVAL_STREAMS], status = 0, made = 0;
    for (; made < n && status == 0; made++) {
        start[made] = r->data.tokenizer.end_of_text >= 0 ? r->data.tokenizer.end_of_text : r->data.ids[0];
        status = sampler_create(&sampler[made], r->model.config.vocab_size, 0, (uint64_t)(o.seed + r->step + made));
        sampler[made].temperature = o.temperature, sampler[made].top_p = o.top_p;
        sampler[made].n_vocab = r->data.tokenizer.n_vocab;
    }
    if (status == 0) status = r->backend.reset(r->backend.self, n);
    if (status == 0) status = r->backend.forward(r->backend.self, start, 1, NULL, 0);
    if (status == 0) status = r->backend.generate(r->backend.self, out, (int)o.sample_tokens, sampler);
    while (made > 0) sampler_free(&sampler[--made]);
    return status;
}

/* The text of sampled ids up to <|endoftext|>; *ended: it came. The caller releases the text. */
static char *decode(const Data *d, const int *ids, int *ended, size_t *n) {
    size_t bytes;
    long count = 0;
    char *text, *at;
    for (*n = 1; count < o.sample_tokens && ids[count] != d->tokenizer.end_of_text; count++, *n += bytes)
        tokenizer_piece(&d->tokenizer, ids[count], &bytes);
    *ended = count < o.sample_tokens;
    text = at = (char *)allocate((*n)--, 1);
    for (long i = 0; text != NULL && i < count; i++, at += bytes) {
        const char *piece = tokenizer_piece(&d->tokenizer, ids[i], &bytes);
        memcpy(at, piece, bytes);
    }
    return text;
}

/* Control characters but tabs and ends of lines become question marks. */
static void print_text(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        putchar((unsigned char)text[i] >= 32 || text[i] == '\n' || text[i] == '\t' ? text[i] : '?');
}

/* Prints a sample and, of what is no story, the place where it ceases to be one. */
static void print_sample(const Run *r, const char *text, size_t n, const Story *story) {
    size_t from = story->n > 20 ? story->n - 20 : 0, rest = n - story->n < 12 ? n - story->n : 12;
    printf(r->is_terminal ? "\n\n" : "\n");
    print_text(text, n);
    printf("\n");
    if (!r->data.is_stories || rest == 0) return;
    printf("[no story goes on like this: ...");
    print_text(text + from, story->n - from);
    printf(">>");
    print_text(text + story->n, rest);
    printf("...]\n");
}

/* Samples n texts and prints the first, and how many of them are stories to the last word. A task has no texts. */
static int print_samples(Run *r, int n) {
    static Story story;
    int *ids, right = 0, ended, status;
    if (r->data.task.len > 0) return 0;
    ids = (int *)allocate((size_t)(n * o.sample_tokens), sizeof *ids);
    status = ids != NULL ? generate(r, ids, n) : -1;
    for (int i = 0; i < n && status == 0; i++) {
        size_t length;
        char *text = decode(&r->data, ids + i * o.sample_tokens, &ended, &length);
        if (text == NULL) status = -1;
        else if (story_read(&story, text) && ended) right++;
        if (text != NULL && i == 0) print_sample(r, text, length, &story);
        release(text);
    }
    if (status == 0 && n > 1 && r->data.is_stories)
        printf("[%d of %d samples are stories to the last word]\n", right, n);
    printf("\n");
    fflush(stdout);
    release(ids);
    return status;
}

/* 5. FILES ===================================================================================================== */

/* DIR/optimizer.safetensors has all that it takes to go on: the weights, both moments, and as metadata the step, the
   random state and the options. One file, replaced as a whole, so that what it holds is of one step. In a run measured
   in steps nothing in it depends on the clock: two halves leave the same bytes as the whole. */
enum { META_STEP, META_RNG, META_SECONDS, META_DATA, META_OPTIONS, N_META = META_OPTIONS + N_OPTION };

static void checkpoint_groups(const Run *r, Group group[3]) {
    static const char *const prefix[] = {"weight.", "moment1.", "moment2."};
    for (int g = 0; g < 3; g++) {
        group[g].prefix = prefix[g], group[g].row = r->model.tensor, group[g].n_row = r->model.n_tensor;
        group[g].optional = 0;
        group[g].base = g == 0 ? r->model.weights : g == 1 ? r->moment1 : r->moment2;
    }
}

static void checkpoint_keys(Metadata *meta) {
    static const char *const key[] = {"step", "rng", "seconds", "data"};
    memset(meta, 0, N_META * sizeof *meta);
    for (int i = 0; i < N_META; i++) meta[i].key = i < META_OPTIONS ? key[i] : option[i - META_OPTIONS].name;
}

static int save(Run *r) {
    static Metadata meta[N_META];
    const Backend *backend = &r->backend;
    Group group[3];
    char path[PATH_SIZE];
    if (backend->copy(backend->self, WEIGHTS, r->model.weights, 0) != 0 ||
        backend->copy(backend->self, MOMENT1, r->moment1, 0) != 0 ||
        backend->copy(backend->self, MOMENT2, r->moment2, 0) != 0) return -1;
    for (size_t i = 0; i < r->model.n_param; i++)
        if (!isfinite(r->model.weights[i]))
            return fail("step %ld: the weights are not finite and are not saved; try a smaller --lr", r->step);
    checkpoint_keys(meta);
    snprintf(meta[META_STEP].value, sizeof meta->value, "%ld", r->step);
    snprintf(meta[META_RNG].value, sizeof meta->value, "%llu", (unsigned long long)r->rng);
    snprintf(meta[META_SECONDS].value, sizeof meta->value, "%.3f", o.steps > 0 ? 0 : elapsed(r));
    snprintf(meta[META_DATA].value, sizeof meta->value, "%016llx", (unsigned long long)r->data.hash);
    for (int i = 0; i < N_OPTION; i++) /* a path that is too long is not stored */
        if (option[i].resumed != UNSTORED && option_text[i] != NULL && strlen(option_text[i]) < sizeof meta->value)
            snprintf(meta[META_OPTIONS + i].value, sizeof meta->value, "%s", option_text[i]);
    checkpoint_groups(r, group);
    if (join_path(path, o.dir, "optimizer.safetensors") != 0 || model_save(&r->model, o.dir) != 0) return -1;
    return tensors_save(path, group, 3, meta, N_META);
}

static int allocate_moments(Run *r) {
    r->moment1 = (real *)allocate(r->model.n_param, sizeof(real));
    r->moment2 = (real *)allocate(r->model.n_param, sizeof(real));
    return r->moment1 != NULL && r->moment2 != NULL ? 0 : -1;
}

/* The inverse of save(): options, weights and moments of the run in DIR. */
static int load(Run *r) {
    static Metadata meta[N_META];
    Group group[3];
    Config c;
    char path[PATH_SIZE], *step_end, *seconds_end;
    if (config_load(&c, o.dir) != 0 || join_path(path, o.dir, "optimizer.safetensors") != 0) return -1;
    checkpoint_keys(meta);
    if (model_table(&r->model, &c) != 0) return -1;
    checkpoint_groups(r, group); /* without memory: the file must show first that it is as large as the config says */
    if (tensors_load(path, group, 3, meta, N_META) != 0 || model_allocate(&r->model, TYPE_REAL) != 0 ||
        allocate_moments(r) != 0) return -1;
    checkpoint_groups(r, group);
    if (tensors_load(path, group, 3, meta, N_META) != 0) return -1;
    for (int i = 0; i < N_OPTION; i++) {
        const char *stored = meta[META_OPTIONS + i].value;
        if (stored[0] != 0 && resume_option(i, stored, path) != 0) return -1;
    }
    if (o.data == NULL) return fail("%s: it does not hold the long path of DATA; give it again", path);
    r->step = r->begun_at = strtol(meta[META_STEP].value, &step_end, 10);
    r->rng = strtoull(meta[META_RNG].value, NULL, 10);
    r->earlier = strtod(meta[META_SECONDS].value, &seconds_end);
    r->data.hash = strtoull(meta[META_DATA].value, NULL, 16);
    if (*step_end != 0 || r->step < 1 || r->step > LONG_MAX / 2 || *seconds_end != 0 ||
        !(r->earlier >= 0 && r->earlier < 1e9))
        return fail("%s: step or seconds of the metadata are out of range", path);
    return 0;
}

/* What --selective does not name is constant. */
static int parse_selective(Config *c) {
    const char *list = o.selective;
    static const char *const name[] = {"delta", "B", "C"};
    int *constant[] = {&c->constant_delta, &c->constant_B, &c->constant_C}, all = strcmp(list, "all") == 0;
    for (int i = 0; i < 3; i++) *constant[i] = !all;
    if (all || strcmp(list, "none") == 0) return 0;
    for (size_t n;; list += n + 1) {
        int i = 0;
        n = strcspn(list, ",");
        while (i < 3 && (n != strlen(name[i]) || strncmp(list, name[i], n) != 0)) i++;
        if (i == 3) return fail("option --selective: '%s', expected all, none, or some of delta,B,C", o.selective);
        *constant[i] = 0;
        if (list[n] == 0) return 0;
    }
}

/* A new model: of the sizes in the options, or a checkpoint's. */
static int create(Run *r) {
    Config c;
    char path[PATH_SIZE];
    memset(&c, 0, sizeof c);
    if (is_there(path, o.dir, "model.safetensors") || is_there(path, o.dir, "optimizer.safetensors"))
        return fail("%s: it is there already; --resume goes on with it, another -o DIR keeps it", path);
    if (o.init != NULL) {
        if (model_load(&r->model, o.init) != 0) return -1;
    } else {
        c.vocab_size = (r->data.n_vocab + 7) / 8 * 8; /* rows in full vectors */
        if (r->data.task.len > 0) c.vocab_size = r->data.n_vocab; /* which says all that run.c must know */
        c.d_model = (int)o.d_model, c.n_layer = (int)o.n_layer, c.d_state = (int)o.d_state, c.d_conv = (int)o.d_conv;
        c.expand = (int)o.expand, c.d_inner = c.expand * c.d_model;
        c.dt_rank = o.dt_rank > 0 ? (int)o.dt_rank : (c.d_model + 15) / 16;
        c.conv_bias = 1, c.tied = !o.untied, c.norm_eps = 1e-5;
        c.bos_id = c.eos_id = c.pad_id = r->data.tokenizer.end_of_text;
        if (parse_selective(&c) != 0 || config_check(&c, "options") != 0 || model_create(&r->model, &c) != 0) return -1;
        model_init(&r->model, (uint64_t)o.seed);
    }
    r->rng = (uint64_t)o.seed;
    return allocate_moments(r);
}

/* The tokenizer goes with the model; from a checkpoint's comes also what Transformers has beside it. */
static int save_tokenizer(const Tokenizer *t) {
    static const char *const beside[] = {"tokenizer_config.json", "special_tokens_map.json"};
    char path[PATH_SIZE];
    if (tokenizer_save_dir(t, o.dir) != 0) return -1;
    for (int i = 0; i < 2 && o.init != NULL && o.tokenizer == NULL; i++) {
        size_t n;
        char *text;
        int status;
        if (!is_there(path, o.init, beside[i])) continue;
        if ((text = read_file(path, &n)) == NULL) return -1;
        status = join_path(path, o.dir, beside[i]) != 0 ? -1 : write_file(path, text, n);
        release(text);
        if (status != 0) return -1;
    }
    return 0;
}

/* DIR, and those above it that are missing. */
static int make_directories(void) {
    char path[PATH_SIZE];
    if (join_path(path, o.dir, "") != 0) return -1;
    for (char *p = path + 1; *p != 0; p++) {
        if (*p != '/') continue;
        *p = 0;
        if (make_directory(path) != 0 && errno != EEXIST)
            return fail("%s: cannot make the directory: %s", path, strerror(errno));
        *p = '/';
    }
    return 0;
}

/* Opens DIR/log.csv. On --resume, lines after the step that it goes on from are dropped. */
static int open_log(Run *r) {
    static const char header[] = "step,tokens,seconds,learning_rate,loss,gradient_norm,held_out_nats_per_token,"
                                 "held_out_bits_per_byte,floor_nats_per_token,held_out_answers_right,"
                                 "held_out_samples_right\n";
    char path[PATH_SIZE], *text = NULL, *line;
    size_t n = 0;
    int status = -1;
    if (is_there(path, o.dir, "log.csv") && o.resume) {
        text = read_file(path, &n);
        if (text == NULL) return -1;
        line = strchr(text, '\n');
        for (; line != NULL && line[1] != 0 && atol(line + 1) <= r->step; line = strchr(line + 1, '\n'))
            if (o.steps > 0) sscanf(line + 1, "%*[^,],%*[^,],%lf", &r->earlier);
        if (line != NULL) n = (size_t)(line + 1 - text);
    }
    if (join_path(path, o.dir, "log.csv") == 0)
        status = text != NULL ? write_file(path, text, n) : write_file(path, header, strlen(header));
    release(text);
    if (status != 0) return -1;
    r->log = fopen(path, "ab");
    return r->log != NULL ? 0 : fail("%s: cannot write: %s", path, strerror(errno));
}

/* The GPU if there is one, unless told otherwise. */
static int open_backend(Run *r) {
    int cpu = strcmp(o.device, "cpu") == 0, cuda = strcmp(o.device, "cuda") == 0;
    if (!cpu && !cuda && strcmp(o.device, "auto") != 0)
        return fail("option --device: '%s', expected cpu, cuda or auto", o.device);
#ifdef MAMBA_CUDA
    if (!cpu) {
        int found = cuda_find();
        if (found == 0) return cuda_backend(&r->backend, &r->model, o.dtype, 1, o.lean);
        if (found < 0 || cuda) return -1;
        fprintf(stderr, "on the CPU: %s\n", error_message);
    }
#else
    if (cuda) return fail("option --device: this program was built without CUDA");
#endif
    if (o.dtype != NULL && strcmp(o.dtype, "fp32") != 0) return fail("option --dtype: the CPU has fp32 only");
    return cpu_backend(&r->backend, &r->model, (int)o.threads, 1);
}

static int open_run(Run *r, const char *program) {
    uint64_t stored;
    r->is_terminal = isatty(1), r->started = r->spoken = seconds();
    if (o.resume && load(r) != 0) return -1;
    if (o.resume && is_over(r))
        return fail("%s: the run is complete; --init %s starts a new one from its weights", o.dir, o.dir);
    stored = r->data.hash;
    if (load_data(&r->data, program) != 0) return -1;
    if (o.resume && stored != r->data.hash)
        return fail("%s: it is not the text that the run in %s began with", o.data, o.dir);
    if (o.batch * o.len > 1 << 26)
        return fail("%s: --batch %lld x --len %lld is more than 2^26 tokens at once", o.resume ? o.dir : "options",
                    o.batch, o.len);
    if (!o.resume && create(r) != 0) return -1;
    if (r->data.n_vocab > r->model.config.vocab_size)
        return fail("%s/config.json: vocab_size is %d, but the tokenizer has %d tokens",
                    o.init != NULL ? o.init : o.dir, r->model.config.vocab_size, r->data.n_vocab);
    if (open_backend(r) != 0) return -1;
    r->has_backend = 1;
    if (o.resume && (r->backend.copy(r->backend.self, MOMENT1, r->moment1, 1) != 0 ||
                     r->backend.copy(r->backend.self, MOMENT2, r->moment2, 1) != 0)) return -1;
    r->adamw.beta1 = o.beta1, r->adamw.beta2 = o.beta2, r->adamw.eps = 1e-8;
    r->adamw.weight_decay = o.weight_decay, r->adamw.clip = o.clip;
    r->tokens = (int *)allocate((size_t)(o.batch * o.len), sizeof(int));
    r->targets = (int *)allocate((size_t)(o.batch * o.len), sizeof(int));
    if (r->tokens == NULL || r->targets == NULL || make_directories() != 0) return -1;
    if (r->data.task.len == 0 && !o.resume && save_tokenizer(&r->data.tokenizer) != 0) return -1;
    return open_log(r);
}

static void close_run(Run *r) {
    if (r->log != NULL) fclose(r->log);
    if (r->has_backend) r->backend.close(r->backend.self);
    model_free(&r->model);
    data_free(&r->data);
    release(r->tokens), release(r->targets);
    release(r->moment1), release(r->moment2);
}

static void print_start(const Run *r) {
    const Config *c = &r->model.config;
    const Data *d = &r->data;
    size_t n = 0;
    for (int i = 0; i < r->model.n_tensor; i++) n += r->model.tensor[i].size;
    printf("model: %d layer%s, d_model %d, d_state %d, vocabulary %d: %zu parameters, on %s\n", c->n_layer,
           c->n_layer == 1 ? "" : "s", c->d_model, c->d_state, c->vocab_size, n, r->backend.description);
    if (has_constants(c))
        printf("constant: %s%s%s\n", c->constant_delta ? "delta " : "", c->constant_B ? "B " : "",
               c->constant_C ? "C" : "");
    if (d->task.len > 0)
        printf("task: %s, fresh samples of %d tokens, vocabulary %d, %d to remember\n", o.data, d->task.len,
               d->task.vocab, d->task.items);
    else
        printf("data: %s, %ld tokens to train on, %ld held out\n", o.data, d->n_train, d->n - d->n_train);
    if (o.resume) printf("goes on after step %ld\n", r->step);
    fflush(stdout);
}

static int train(Run *r) {
    print_start(r);
    r->started = r->spoken = seconds();
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    while (!interrupted && !is_done(r) && (o.stop == 0 || r->step < o.stop)) {
        int measured;
        if (take_step(r) != 0) return -1;
        if (is_done(r)) break;
        measured = is_due(r, o.eval_every);
        if (measured && evaluate(r, o.eval_tokens) != 0) return -1;
        if (is_done(r)) break;
        if ((measured || is_due(r, o.log_every)) && write_log(r, measured) != 0) return -1;
        if (measured || (is_due(r, o.log_every) && (r->is_terminal || seconds() - r->spoken > 10))) print_progress(r);
        if (is_due(r, o.sample_every) && print_samples(r, 1) != 0) return -1;
        if (is_due(r, o.save_every) && save(r) != 0) return -1;
    }
    if (r->step > r->begun_at && save(r) != 0) return -1;
    if (!is_done(r)) {
        printf("%sstopped after step %ld, saved in %s; ./train --resume -o %s goes on\n", r->is_terminal ? "\n" : "",
               r->step, o.dir, o.dir);
        return 0;
    }
    if (evaluate(r, 0) != 0 || write_log(r, 1) != 0) return -1;
    print_progress(r);
    if (print_samples(r, EVAL_STREAMS) != 0) return -1;
    if (r->data.task.len == 0) printf("saved in %s; ./run %s samples from it\n", o.dir, o.dir);
    else printf("saved in %s; ./run %s --task %s measures it at any length\n", o.dir, o.dir, o.data);
    return 0;
}

int main(int argc, char **argv) {
    static Run r;
    int status = parse_options(argc, argv);
    if (status == 0 && o.help) {
        print_usage();
        return 0;
    }
    if (status == 0) status = open_run(&r, argv[0]);
    if (status == 0) status = train(&r);
    if (status != 0) fprintf(stderr, "%strain: %s\n", r.is_terminal && r.step > r.begun_at ? "\n" : "", error_message);
    close_run(&r);
    return status != 0;
}
