/* How a Device makes and ends its queues and its failure flag, and what the doors of device.h are on a stream that
 * has a queue or none: for the files of this folder. */
#ifndef MOP_STREAM_H
#define MOP_STREAM_H

#include "device/device.h"

struct StreamQueue *queue_open(Stream *s, bool late, Error *e); /* late: random delays (tests); NULL: no thread */
void queue_close(struct StreamQueue *q);                        /* after all its work; NULL: none */
struct DeviceFailure *failure_open(void);                       /* NULL: no memory */
void failure_close(struct DeviceFailure *f);

void queue_launch(Stream *s, LaunchFunction fn, const void *args, size_t bytes); /* stream_launch */
Event queue_record(Stream *s);                                                   /* event_record */
void queue_wait(Event e);                                                        /* event_wait */
void queue_follow(Stream *s, Event e);                                           /* stream_wait */

#endif
