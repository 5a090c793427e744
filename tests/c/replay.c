/* Runs one FAMILY of fuzz.c on its corpus without libFuzzer, under valgrind. Valgrind sees memory that is read before
 * it is written, but cannot check the results: it computes long double, the reference's type, in double. So a failure
 * only leads to the next input.
 *
 * Arguments: the corpus, with one input per line in hexadecimal, and n, to run every n-th line. */
#include <setjmp.h>

static jmp_buf next_input;

#define AFTER_FAILURE longjmp(next_input, 1)
#include "fuzz.c"

static size_t parse_line(const char* line, uint8_t* bytes) {
    size_t size = 0;
    unsigned byte;
    while (sscanf(line + 2 * size, "%2x", &byte) == 1) {
        bytes[size++] = (uint8_t)byte;
    }
    return size;
}

int main(int argc, char** argv) {
    static char line[1024];
    static uint8_t bytes[sizeof line];
    FILE* corpus = argc == 3 ? fopen(argv[1], "r") : NULL;
    const int step = argc == 3 ? atoi(argv[2]) : 0;
    if (!corpus || step < 1) {
        printf("expected a corpus and a number of lines from one input to the next\n");
        return 1;
    }
    find_tables();
    for (volatile int i = 0; fgets(line, sizeof line, corpus); ++i) {
        if (i % step == 0 && setjmp(next_input) == 0) {
            LLVMFuzzerTestOneInput(bytes, parse_line(line, bytes));
        }
    }
    return fclose(corpus);
}
