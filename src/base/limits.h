/* What this machine lets the process have: memory and threads. Of a container that is what the container was given. A
 * limit that cannot be found out is INFINITY: the request itself will tell. */
#ifndef MOP_LIMITS_H
#define MOP_LIMITS_H

#include "base/base.h"

double memory_limit(void);  /* bytes: physical memory, or less by the limits of control groups */
double threads_limit(void); /* of all programs together: so many may be refused, more are refused for certain */

/* The parts, for tests. A limit's file: a number or "max"; INFINITY for the latter and for what is neither. */
double limit_parse(const char *text);
/* The least limit of a control group and of those it lies in. `groups`: what /proc/self/cgroup says; `root`: where the
 * groups are mounted; `controller` with its file in version 2 ("memory.max") and 1 ("memory.limit_in_bytes"). */
double cgroup_limit(const char *groups, const char *root, const char *controller, const char *file,
                    const char *old_file);

#endif
