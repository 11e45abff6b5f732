/* How a Device makes and ends its queues and its failure flag; used by device.c alone. */
#ifndef MOP_STREAM_H
#define MOP_STREAM_H

#include "device/device.h"

struct StreamQueue *queue_open(Stream *s, bool late); /* late: random delays (tests) */
void queue_close(struct StreamQueue *q);              /* after all its work */
struct DeviceFailure *failure_open(void);
void failure_close(struct DeviceFailure *f);

#endif
