/* Prints N of the stories of train.c, one a line: the same text on every machine.     build/stories N
   SPDX-License-Identifier: MIT */
#define main train_main
#include "../train.c"
#undef main

int main(int argc, char **argv) {
    static Story s;
    for (int i = 0; argc > 1 && i < atoi(argv[1]); i++) {
        story_write(&s, (uint64_t)i);
        puts(s.text);
    }
    return 0;
}
