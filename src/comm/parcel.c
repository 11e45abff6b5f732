/* Walks over the two sides of a parcel. */
#include "comm/parcel.h"

#include <string.h>

static Walk walk_over(const void *base, const Span *spans, size_t row_bytes, size_t bytes) {
    char *at = (char *)(uintptr_t)base; /* a walk over what is sent is only read from */
    return (Walk){
        .base = at, .at = at, .span = spans, .row_bytes = row_bytes, .block = spans ? 0 : bytes, .left = bytes};
}

Walk walk_sent(const Parcel *p) {
    return walk_over(p->send, p->send_spans, p->row_bytes, p->send_bytes);
}

Walk walk_received(const Parcel *p) {
    return walk_over(p->receive, p->receive_spans, p->row_bytes, p->receive_bytes);
}

size_t walk_block(Walk *w) {
    while (w->block == 0 && w->left > 0) {
        w->at = w->base + (size_t)w->span->first * w->row_bytes;
        w->block = (size_t)w->span->count * w->row_bytes;
        w->span++;
    }
    MUST(w->block <= w->left);
    return w->block;
}

char *walk_take(Walk *w, size_t bytes) {
    MUST(bytes <= w->block);
    char *at = w->at;
    w->at += bytes;
    w->block -= bytes;
    w->left -= bytes;
    return at;
}

void walk_copy(Walk to, Walk from) {
    MUST(to.left == from.left);
    while (to.left > 0) {
        size_t room = walk_block(&to), bytes = walk_block(&from);
        if (bytes > room) bytes = room;
        char *here = walk_take(&to, bytes), *there = walk_take(&from, bytes);
        if (here != there) memmove(here, there, bytes);
    }
}
