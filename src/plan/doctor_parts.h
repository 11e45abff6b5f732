/* What the parts of `mop doctor` share: figures with their spread, notes, and the parts themselves. */
#ifndef MOP_DOCTOR_PARTS_H
#define MOP_DOCTOR_PARTS_H

#include "comm/comm.h"

/* ---- Figures (doctor_report.c) ------------------------------------------------------------------- */

enum { KEY_BYTES = 64, MAX_FIGURES = 320, MAX_NOTES = 48, MAX_SAMPLES = 64 };

typedef struct {
    char key[KEY_BYTES]; /* ends with its unit: _flop_per_s, _bytes_per_s, _parameters_per_s, _s */
    double least, median, most;
} Figure;

typedef struct {
    Figure figure[MAX_FIGURES];
    int figures, disturbed;
    char note[MAX_NOTES][360];
    int notes;
    bool broken; /* something will not work */
} Report;

/* Samples of one figure, and what the processors did meanwhile. */
typedef struct {
    double value[MAX_SAMPLES];
    int n;
    double least; /* seconds that they are to cover */
    double start, busy, own;
} Samples;

Samples samples_begin(void);
void samples_add(Samples *s, double value);
bool samples_wanted(const Samples *s); /* a handful, and more while that takes no time */
double
samples_others(const Samples *s); /* cores that other programs have used since samples_begin; 0: too few to tell */
/* Adds the figure and prints it; says when other programs used the processors meanwhile, unless the work is shared
 * with other processes. */
void report_samples(Report *r, const char *key, const Samples *s, bool shared);
/* Runs once(context) to warm up, then until the samples are enough; the figure is work / seconds, or seconds when
 * work is 0. */
void report_rate(Report *r, const char *key, double work, void (*once)(void *context), void *context);
/* The same, over at least so many seconds: what a machine is made of, whose medians a moment's disturbance must not
 * move. */
void report_rate_over(Report *r, double seconds, const char *key, double work, void (*once)(void *context),
                      void *context);
const Figure *report_find(const Report *r, const char *key); /* NULL: not measured */
/* Adds a sentence to those printed at the end. */
void report_note(Report *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
void report_broken(Report *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
void report_notes_print(const Report *r);
/* The value with the unit that the key's ending asks for: "12.3 GB/s". */
const char *figure_text(const char *key, double value, char *text, size_t bytes);
json_t *report_json(const Report *r); /* key -> {"min", "median", "max"} */

/* ---- The parts ------------------------------------------------------------------------------------ */

/* doctor_host.c */
typedef struct {
    char model[128];
    int threads;      /* that mop uses when it may use all */
    size_t cache;     /* of the last level, bytes */
    double available; /* memory, bytes; under every limit */
} Host;
Host host_look(Report *r); /* prints what it finds */

void doctor_cpu(Report *r, const Host *h, int threads, Error *e);      /* doctor_cpu.c: peaks and AdamW */
void doctor_products(Report *r, const Host *h, int threads, Error *e); /* doctor_products.c: the ops themselves */
void doctor_other_products(Report *r, const Host *h);                  /* doctor_cpu.c: where libraries are installed */
void doctor_disk(Report *r, const char *directory);                    /* doctor_disk.c */
void doctor_threads_wire(Report *r, int ranks);                        /* doctor_wire.c */
bool doctor_mpi_wire(Report *r, Error *e); /* every rank of the mpirun calls it; only rank 0 prints */

/* cuda/doctor_gpu.c: what GPUs there are, and the first one measured; what is missing is noted. A machine: `out` is
 * its GPUs. */
typedef enum { GPU_NONE, GPU_MACHINE, GPU_INCOMPLETE } GpuAnswer;
GpuAnswer doctor_gpus(Report *r, const Host *h, Machine *out);

/* doctor_gpu_machine.c: the GPUs' figures as a machine; false: noted which are missing. */
typedef struct {
    char name[256];
    int count, major, minor, multiprocessors; /* alike; compute capability */
    double clock, memory_bytes;               /* the highest, Hz; that a run can use */
} GpuFacts;
bool machine_of_gpu(Report *r, const GpuFacts *g, Machine *out);

/* doctor_machine.c */
bool machine_of_report(Report *r, const Host *h, Machine *out); /* false: noted why the figures make no machine */
bool machine_write(const Machine *m, const Report *r, const char *path, Error *e);
bool machine_compare(const Machine *m, const Report *r, const char *name, Error *e);

/* doctor_step.c: predicted and measured, op by op; the exit code. Whether there is such a config, with its data, is
 * known before anything is measured. */
bool doctor_step_possible(const char *config, Error *e);
int doctor_step(const char *config, const char *machine);

#endif
