/* The two files of the ends of the model to each other: vocabulary.c hands the loss of a vocabulary in parts to
 * vocabulary_loss.c. */
#ifndef MOP_VOCABULARY_H
#define MOP_VOCABULARY_H

#include "model/model.h"

/* One micro-batch at the head. Letters as in vocabulary.c. */
typedef struct {
    const Model *m;
    const Weights *w;
    Weights *dw; /* NULL: no gradients */
    const MicroBatch *b;
    Tensor hidden, dhidden; /* [rows, H]: normed, and what their gradients become; rows >= T are 0 in hidden */
    Tensor loss, trained;
} Head;

/* Rows that `hidden` and `dhidden` have. */
int64_t vocabulary_rows(const Model *m, const MicroBatch *b, bool training);
void vocabulary_loss(const Head *h);

/* What all P members of a group send for the loss of a micro-batch, in bytes, each way; M: tokens of the member that
 * has most. */
typedef struct {
    int64_t members, tokens, vocabulary, hidden; /* P, M, V, H */
    Type real, sum;
    bool training;
} LossTraffic;
int64_t loss_activations_bytes(LossTraffic t);
int64_t loss_weights_bytes(LossTraffic t);
/* Whichever is less; TRAVEL_ACTIVATIONS where they are equal. */
Travel loss_travel(LossTraffic t);

#endif
