/* Which parameter lies where: the layout table, used by the store's files alone.
 *
 * What a rank keeps of a part is one vector: its shard of the part's dense parameters, then its experts' parameters.
 *
 *   | dense shard: elements [index * shard, (index + 1) * shard) of the flat part | gate of experts here | up | down |
 */
#ifndef MOP_LAYOUT_H
#define MOP_LAYOUT_H

#include "store/store.h"

typedef struct {
    ParameterName parameter;
    Shape shape;   /* of the whole; experts: dim[0] is E */
    int64_t at;    /* first element: in the flat dense part, or in this rank's vector */
    int64_t count; /* elements of the whole dense parameter, or of this rank's experts */
} Entry;

typedef struct {
    int64_t layer; /* -1 for embedding and head */
    int entries;
    Entry entry[PARAMETER_COUNT]; /* dense ones first */
    int dense_entries;
    int64_t whole, shard, kept; /* elements: dense flat, padded; this rank's; with its experts */
} PartLayout;

typedef struct {
    int64_t parts;
    PartLayout *part;
    int64_t experts_each, expert_first, experts_here;
    int64_t slices;
    Slice *slice;
} Layout;

Layout *layout_open(const Spec *spec, const Mesh *mesh);
void layout_close(Layout *l);

#endif
