/* Which parameter lies where: the layout table, used by the store's files alone.
 *
 * A part is up to three segments, each a flat vector that some group shares. What a rank keeps of a part is one
 * vector: its shard of every segment, one after another.
 *
 *   segment      what it holds                                    cut evenly over     the same bytes on
 *   DENSE        what every rank uses whole                       dense (Z)           dense_replica
 *   EXPERTS      gate | up | down of this rank's ceil(E / E_p)    expert_shard (E_s)  expert_replica
 *   VOCABULARY   rows [p ceil(V / P), ...) of embedding and head  kept whole          vocabulary_replica   (P > 1; else dense)
 *
 *   kept:  | dense shard | experts' shard | vocabulary rows |
 */
#ifndef MOP_LAYOUT_H
#define MOP_LAYOUT_H

#include "store/store.h"

typedef enum { SEGMENT_DENSE, SEGMENT_EXPERTS, SEGMENT_VOCABULARY, SEGMENT_COUNT } SegmentName;

typedef struct {
    AxisName shards, replicas; /* who shares it; who keeps the same shard */
    bool moves;  /* cut: gathered to be used, its gradient reduce-scattered. Else the kept vector itself is used */
    int entries; /* its parameters: as many on all ranks, also where no row or expert of them is here */
    int64_t whole, shard; /* elements: of the whole (padded to equal shards); of what is kept here */
    int64_t begin;        /* the shard's first element in the whole */
    int64_t at;           /* the shard's first element in the kept vector */
} Segment;

typedef struct {
    ParameterName parameter;
    SegmentName segment;
    Shape shape;           /* as this rank uses it: experts and vocabulary rows that are here in dim[0] */
    int64_t at, count;     /* elements of the segment's whole */
    int64_t tensors;       /* Hugging Face tensors that lie one after another in it: 1, or the experts here */
    int64_t first_element; /* of the Hugging Face tensor, where this rank's rows of it begin */
} Entry;

typedef struct {
    int64_t layer; /* -1 for embedding and head */
    int entries;
    Entry entry[PARAMETER_COUNT];
    Segment segment[SEGMENT_COUNT];
    int64_t kept; /* elements of this rank's vector */
} PartLayout;

typedef struct {
    int64_t parts;
    PartLayout *part;
    Share experts, vocabulary; /* of this rank */
    int64_t slices;
    Slice *slice;
} Layout;

/* Without `slices` there are none: sim has no bytes to name. NULL: no memory. */
Layout *layout_open(const Spec *spec, const Mesh *mesh, bool slices);
void layout_close(Layout *l);
/* The elements of an entry that this rank keeps, possibly none: their place in the kept vector. */
typedef struct {
    int64_t at, count;
    int64_t first; /* of the entry's elements */
} Kept;
Kept layout_kept(const PartLayout *p, const Entry *e, int64_t first, int64_t count);

#endif
