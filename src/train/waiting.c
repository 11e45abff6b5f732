#include "train/waiting.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const double every_terminal = 0.5, every_elsewhere = 10; /* seconds */

Waiting waiting_begin(const char *what) {
    double now = seconds_now();
    return (Waiting){.what = what, .terminal = isatty(STDERR_FILENO), .began = now, .told = now};
}

static Shown time_shown(double seconds) {
    char text[40];
    if (seconds < 120)
        snprintf(text, sizeof text, "%.0f s", seconds);
    else if (seconds < 7200)
        snprintf(text, sizeof text, "%.0f min", seconds / 60);
    else
        snprintf(text, sizeof text, "%.1f h", seconds / 3600);
    return text_shown(text);
}

Shown waiting_line(const char *what, double share, double seconds) {
    char text[256];
    double done = fmin(1, fmax(0, share));
    if (done > 0)
        snprintf(text, sizeof text, "%.20s: %.0f %% after %s, %s left", what, floor(100 * done),
                 time_shown(seconds).text, time_shown(seconds * (1 - done) / done).text);
    else
        snprintf(text, sizeof text, "%.20s: %s", what, time_shown(seconds).text);
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
