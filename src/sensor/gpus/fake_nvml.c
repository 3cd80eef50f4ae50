/* A driver's library for tests: GPUs are the lines of the file CONTROL, each `present TOTAL FREE` in MiB,
   `lost`, or `hang`, in which a call does not come back for as long as the line says so. What may follow:
   `xid CODE NUMBER` is an event, told once as long as neither changes; `no-events` cannot tell of any;
   `pid PID MIB` is a process with its memory there, `pid PID -` one whose memory is not told. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;

typedef struct { void *device; unsigned long long type, data; unsigned gpu, compute; } event;
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu, compute; } process;

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, LOST = 15 };

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

/* The words of a GPU's line, cut in place; 0 without a line. */
static int words(unsigned index, char *text, size_t size, char **found, int most) {
    FILE *file = fopen(CONTROL, "r");
    int count = 0;
    if (!file) return 0;
    for (unsigned at = 0; fgets(text, size, file); at++) {
        if (at != index) continue;
        for (char *word = strtok_r(text, " \n", &text); word && count < most;
             word = strtok_r(NULL, " \n", &text)) found[count++] = word;
        break;
    }
    fclose(file);
    return count;
}

/* One for each listener: its GPU, and what it was told last. */
typedef struct { void *device; unsigned long code, number; } event_set;

int nvmlEventSetCreate(event_set **set) {
    *set = calloc(1, sizeof **set);
    return OK;
}
int nvmlEventSetFree(event_set *set) { free(set); return OK; }

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, event_set *set) {
    char text[256], *found[32];
    int count = words(index_of(device), text, sizeof text, found, 32);
    (void)types;
    for (int at = 0; at < count; at++) if (!strcmp(found[at], "no-events")) return UNSUPPORTED;
    set->device = device;
    return OK;
}

int nvmlEventSetWait_v2(event_set *set, event *told, unsigned timeout_ms) {
    char text[256], *found[32];
    int count = words(index_of(set->device), text, sizeof text, found, 32);
    for (int at = 0; at + 2 < count; at++) {
        if (strcmp(found[at], "xid")) continue;
        unsigned long code = strtoul(found[at + 1], NULL, 10), number = strtoul(found[at + 2], NULL, 10);
        if (code == set->code && number == set->number) continue;
        set->code = code;
        set->number = number;
        memset(told, 0, sizeof *told);
        told->device = set->device;
        told->type = 8;
        told->data = code;
        return OK;
    }
    usleep(timeout_ms * 1000);
    return TIMEOUT;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *listed) {
    char text[256], *found[32];
    int given = words(index_of(device), text, sizeof text, found, 32);
    unsigned room = listed ? *count : 0, here = 0;
    for (int at = 0; at + 2 < given; at++) {
        if (strcmp(found[at], "pid")) continue;
        if (here < room) {
            int is_told = strcmp(found[at + 2], "-");
            listed[here].pid = strtoul(found[at + 1], NULL, 10);
            listed[here].memory = is_told ? strtoull(found[at + 2], NULL, 10) << 20 : ~0ull;
            listed[here].gpu = listed[here].compute = ~0u;
        }
        here++;
    }
    *count = here;
    return here > room ? INSUFFICIENT_SIZE : OK;
}

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
