/* Two models' descriptions, compared by what they mean: a config.json that is spelt otherwise, or says more than mop
 * reads, means the same. One table of fields serves the hash that ranks show each other and the list of what differs
 * that a resume looks at. */
#ifndef MOP_SPEC_COMPARE_H
#define MOP_SPEC_COMPARE_H

#include "model/model.h"

/* What a field decides once a run has begun. */
typedef enum {
    SPEC_MODEL,       /* what is computed: may not change at a resume */
    SPEC_COEFFICIENT, /* of a loss: may change, as loss.balance and loss.router_z may, and is told */
    SPEC_BEGINNING,   /* random weights only: nothing any more */
} SpecUse;

typedef enum { KIND_FAMILY, KIND_INTEGER, KIND_NUMBER, KIND_SWITCH, KIND_QK_NORM, KIND_LAYERS } FieldKind;

typedef struct {
    const char *name; /* the key of config.json, or words where families have several keys for it */
    FieldKind kind;
    size_t offset, bytes;
    SpecUse use;
} SpecField;

/* Every field of a Spec but moe_layers, which follows from `dense`, and the source. */
enum { SPEC_FIELDS = 22 };
extern const SpecField spec_fields[SPEC_FIELDS];

uint64_t spec_hash(const Spec *s);

typedef struct {
    const SpecField *field;
    Shown before, now;
} SpecChange;
/* What differs, in the table's order; returns how many. */
int spec_changes(const Spec *before, const Spec *now, SpecChange out[SPEC_FIELDS]);

#endif
