/* The layouts of a config that `mop verify-layouts` compares with one rank, made from one table of settings. A layout
 * is a Config: the user's, with other ranks, groups, micro-batches and rounds. */
#ifndef MOP_LAYOUTS_H
#define MOP_LAYOUTS_H

#include "model/model.h"

typedef struct {
    Config *layout; /* [count] their strings are those of the Config that they were made from, which outlives them */
    int64_t count;
} Layouts;

/* One rank, every axis 1, one micro-batch, one round, nothing recomputed: what the others are held to. */
Config layout_alone(const Config *own);
/* The config's own layout first, then each setting at each of its values with all others as in layout_alone (an axis:
 * at each divisor of `world` but 1), then `mixed` drawn ones that run_supported takes, or as many as are found. The
 * same every time, none twice, none equal to layout_alone. Any but the mixed ones may be what run_supported refuses.
 * */
Layouts layouts_make(const Config *own, const Spec *spec, int world, int64_t mixed);
void layouts_free(Layouts *l);

/* The settings in which a layout differs from `alone`, as --set has them but for their section: "dense=4
 * micro_batches=2". */
typedef struct {
    char text[400];
} LayoutText;
LayoutText layout_text(const Config *layout, const Config *alone);

#endif
