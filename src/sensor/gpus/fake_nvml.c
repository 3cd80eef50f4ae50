/* A driver's library for tests: GPUs are the lines of the file CONTROL, each `present TOTAL FREE` in MiB,
   `lost`, or `hang`, in which a call does not come back for as long as the line says so. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;

enum { OK = 0, INVALID = 2, LOST = 15 };

static int line(unsigned index, char *word, unsigned long long *total, unsigned long long *free_) {
    for (;;) {
        char text[256];
        FILE *file = fopen(CONTROL, "r");
        if (!file) return INVALID;
        for (unsigned at = 0; fgets(text, sizeof text, file); at++) {
            if (at != index) continue;
            *total = *free_ = 0;
            sscanf(text, "%31s %llu %llu", word, total, free_);
            fclose(file);
            if (!strcmp(word, "hang")) { usleep(200000); goto again; }
            return strcmp(word, "lost") ? OK : LOST;
        }
        fclose(file);
        return INVALID;
    again:;
    }
}

/* Does not come back for as long as the first line is `hang-init`. */
int nvmlInit_v2(void) {
    for (;;) {
        char text[256] = "";
        FILE *file = fopen(CONTROL, "r");
        if (!file) return OK;
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
        if (strncmp(text, "hang-init", 9)) return OK;
        usleep(200000);
    }
}
int nvmlShutdown(void) { return OK; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "999.0"); return OK; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    char text[256];
    FILE *file = fopen(CONTROL, "r");
    *count = 0;
    if (!file) return OK;
    while (fgets(text, sizeof text, file)) ++*count;
    fclose(file);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return OK;
}

static unsigned index_of(void *device) { return (unsigned)(unsigned long)device - 1; }

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    char word[32] = "";
    unsigned long long total, free_;
    int result = line(index_of(device), word, &total, &free_);
    memory->total = total << 20;
    memory->free = free_ << 20;
    memory->used = memory->total - memory->free;
    memory->reserved = 0;
    return result;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    snprintf(name, length, "Fake %u", index_of(device));
    return OK;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%08u", index_of(device));
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *device, utilization *rates) {
    rates->gpu = 10 * index_of(device);
    rates->memory = 0;
    return OK;
}
