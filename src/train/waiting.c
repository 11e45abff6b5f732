#include "train/waiting.h"
#include "train/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const double every_terminal = 0.5, every_elsewhere = 10; /* seconds */

Waiting waiting_begin(const char *what) {
    double now = seconds_now();
    return (Waiting){.what = what, .terminal = isatty(STDERR_FILENO), .began = now, .told = now};
}

Shown waiting_line(const char *what, double share, double seconds) {
    char text[256];
    double done = fmin(1, fmax(0, share));
    if (done > 0)
        snprintf(text, sizeof text, "%.20s: %.0f %% after %s, %s left", what, floor(100 * done),
                 duration_shown(seconds).text, duration_shown(seconds * (1 - done) / done).text);
    else
        snprintf(text, sizeof text, "%.20s: %s", what, duration_shown(seconds).text);
    return text_shown(text);
}

void waiting_tell(Waiting *w, double share) {
    double now = seconds_now();
    if (!w || now - w->told < (w->terminal ? every_terminal : every_elsewhere)) return;
    w->told = now;
    fprintf(stderr, w->terminal ? "\r\033[K%s" : "mop: %s\n", waiting_line(w->what, share, now - w->began).text);
    fflush(stderr);
    w->open = w->terminal;
}

void waiting_end(Waiting *w) {
    if (w->open) fprintf(stderr, "\r\033[K");
    fflush(stderr);
    w->open = false;
}
