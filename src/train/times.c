/* Where the seconds of a step go: differences of what the streams have counted since the device was opened. Nothing
 * is ever cleared, so that who reads the streams' times disturbs nobody. */
#include "train/run.h"

#include <string.h>

const char *time_name(TimeKind k) {
    static const char *const names[TIME_KINDS] = {"compute_s", "network_s", "exposed_s"};
    MUST(k >= 0 && k < TIME_KINDS);
    return names[k];
}

Times times_now(Run *r) {
    device_settle(r->device);
    const StreamTime *compute = &r->device->stream[STREAM_COMPUTE].time;
    const StreamTime *network = &r->device->stream[STREAM_NETWORK].time;
    Times t;
    for (int k = 0; k < COMPONENT_COUNT; k++) {
        t.by[TIME_COMPUTE][k] = compute->work[k];
        t.by[TIME_NETWORK][k] = network->work[k];
        t.by[TIME_EXPOSED][k] = compute->wait[STREAM_NETWORK][k];
    }
    return t;
}

/* x += scale * y */
static void accumulate(Times *x, const Times *y, double scale) {
    for (int i = 0; i < TIME_KINDS; i++)
        for (int k = 0; k < COMPONENT_COUNT; k++) x->by[i][k] += scale * y->by[i][k];
}

Times times_between(const Times *from, const Times *to) {
    Times t = *to;
    accumulate(&t, from, -1);
    return t;
}

void times_begin(Run *r) {
    Times now = times_now(r);
    accumulate(&r->told, &now, 1);
    accumulate(&r->told, &r->left, -1);
}

Times times_tell(Run *r) {
    Times now = times_now(r), since = times_between(&r->told, &now);
    r->told = now;
    return since;
}

Times times_mean(const double *sums, int ranks) {
    Times t = {0}, sum;
    memcpy(&sum, sums, sizeof sum);
    accumulate(&t, &sum, 1.0 / ranks);
    return t;
}

void times_end(Run *r) {
    r->left = times_now(r);
}
