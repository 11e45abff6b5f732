/* What must hold for a case, each in a process of its own, which ends with 0 when it does and says what is wrong
 * otherwise. A rank that asks for more memory than the plan says ends every one of them. */
#ifndef MOP_RANDOM_CHECKS_H
#define MOP_RANDOM_CHECKS_H

#include "random/cases.h"

/* In this process: they return or exit. `directory` is empty and theirs.
 *   layout    losses, norms, gradients and, after all steps, weights and moments are those of one rank, in fp64. What
 *             is allowed is what roundings make of the same case on one rank (other kernels, weights that begin one
 *             rounding away): CONDITION times as much, and always FLOOR
 *   bits      the same run another way that must change no bit: threads, update, recomputation, delays, saves
 *   resume    stopped after some step and gone on with: on the same ranks to the bit, on others within the bound */
void check_layout(const Case *c, const char *directory);
void check_bits(const Case *c, const char *directory);
void check_resume(const Case *c, const char *directory);

/* With the program at `mop`:
 *   killed    killed at any moment and begun again until it is through: the bytes of a run that nobody killed
 *   mpi       ranks as processes of an mpirun leave the bytes of ranks that are threads; idle without an mpirun
 *   nonsense  settings and models that make no sense end with a documented exit code */
void check_killed(const Case *c, const char *directory, const char *mop);
void check_mpi(const Case *c, const char *directory, const char *mop);
void check_nonsense(const Case *c, const char *directory, const char *mop);

/* config.json, data.jsonl and settings.yaml, which the program reads. */
void case_write(const Made *m, const char *directory);

/* Ends the process, and whatever it still holds: with 1, or with 2 when nothing can be said of this case, for a reason
 * that is no fault. */
_Noreturn void check_end(int code);
_Noreturn void check_failed(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void check_idle(const char *why);

#endif
