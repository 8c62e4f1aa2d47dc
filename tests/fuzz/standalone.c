/* The fuzzer's harness without a fuzzer, for the other tools: standalone COUNT [FILE...] checks the
 * contract, then feeds the harness the files and COUNT inputs of random bytes. */
#include "bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void check_contract(void);

int main(int count, char **words)
{
    enum { MOST = 512 };
    uint8_t data[MOST];
    const long wanted = count > 1 ? atol(words[1]) : 0;
    check_contract();
    for (int i = 2; i < count; ++i) {
        FILE *const file = fopen(words[i], "rb");
        if (file == NULL) {
            fprintf(stderr, "cannot open %s\n", words[i]);
            return 1;
        }
        LLVMFuzzerTestOneInput(data, fread(data, 1, MOST, file));
        fclose(file);
    }
    bytes from = {NULL, 0, 1};
    for (long i = 0; i < wanted; ++i) {
        for (size_t k = 0; k < MOST; ++k) {
            data[k] = (uint8_t)random_bits(&from);
        }
        LLVMFuzzerTestOneInput(data, MOST);
    }
    printf("%d files and %ld random inputs\n", count > 2 ? count - 2 : 0, wanted);
    return 0;
}
