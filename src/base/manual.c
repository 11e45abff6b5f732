/* The pages. Plain words first; the letters of docs/parallel.md only where they help to find the place there. */
#include "base/manual.h"
#include "base/base.h"
#include <string.h>

static const Page pages[] = {
    /* ---- model ---- */
    {"model",
     "Which model is trained or run. model.config alone gives a model of that shape with random weights, to train from "
     "nothing. model.path gives weights that exist: a Hugging Face directory, a checkpoint of mop, or a run.",
     "", "model.config=examples/tiny.json"},
    {"model.config",
     "A Hugging Face config.json. It describes the shape of the model: layers, width, heads, experts, vocabulary. The "
     "weights are then drawn at random from train.seed.",
     "Give it to train a model from nothing. To make a model larger or smaller, copy the file and edit its numbers.",
     "model.config=examples/bible.json"},
    {"model.path",
     "A directory with weights: a Hugging Face directory (config.json and .safetensors files), one checkpoint of mop "
     "(runs/a/ckpt/step-00000050), or a run (runs/a), which means its newest checkpoint. The config.json in it "
     "describes the model, and a tokenizer.json in it is used. mop downloads nothing: the directory must be on this "
     "machine.",
     "Give it to fine-tune, evaluate or continue text. A run that resumes finds its own checkpoints and does not need "
     "it.",
     "model.path=runs/bible"},
    /* ---- data ---- */
    {"data",
     "What the model learns from, and how text becomes numbers. Documents are packed one after the other and cut into "
     "pieces of train.sequence_length tokens; no document attends to another.",
     "", "data.path=book.txt"},
    {"data.path",
     "Files to train on or to evaluate: text files (UTF-8, one document each), .jsonl files (one document a line, "
     "{\"text\": ...} or {\"input_ids\": [...], \"labels\": [...]}), directories of these, or one .tokens file made by "
     "`mop data`. Several are a list: [a.txt, b.jsonl].",
     "Always given to train and evaluate. Large text is read faster from a .tokens file.",
     "data.path=[book.txt, more.jsonl]"},
    {"data.tokenizer",
     "A tokenizer.json, which turns text into ids; or bytes, which is built in: id = byte, a vocabulary of 256; or "
     "none, for data that is made of ids already. When it is left empty, mop takes the one beside the model, or bytes "
     "where there is none and the model has 256 to 512 ids. Text is refused where neither fits.",
     "Give it when the tokenizer lies elsewhere than the model, or is of a kind that mop cannot read: docs/start.md "
     "shows how to turn text into ids with another program.",
     "data.tokenizer=model/tokenizer.json"},
    /* ---- train ---- */
    {"train",
     "How long and in which portions a run trains. A step takes train.sequences pieces of train.sequence_length tokens "
     "each, over all ranks together, and changes the weights once.",
     "", "train.steps=1000"},
    {"train.steps",
     "How many times the weights are changed in the whole run, resumed parts included. The learning rate's schedule "
     "ends here. An epoch is as many steps as the data has tokens, divided by train.sequences x train.sequence_length.",
     "Set it for every run. Raise it to go on with a run that has ended; the rest of the schedule is then stretched.",
     "train.steps=1000"},
    {"train.sequence_length",
     "How many tokens the model sees at a time. Longer documents are cut into pieces of this length, shorter ones "
     "share a piece. Time and memory of attention grow with it.",
     "Raise it as far as the longest connection that the model has to learn; lower it when memory runs short.",
     "train.sequence_length=2048"},
    {"train.sequences",
     "How many pieces a step has, over all ranks and micro-batches: the batch size of other trainers, counted as a "
     "whole. Ranks share them; with fewer pieces than ranks some ranks have nothing to do.",
     "More make each step steadier and slower. Small ones teach more for the same time in short runs.",
     "train.sequences=32"},
    {"train.micro_batches",
     "A step's sequences are worked through in so many parts, one after the other, whose gradients are summed: "
     "gradient accumulation. The result is that of the whole step.",
     "Raise it when activations do not fit in memory. train.sequences stays as it is.", "train.micro_batches=4"},
    {"train.seed",
     "The number that random weights, the order of the data and samples are drawn from. The same seed and settings "
     "give the same run to the bit.",
     "Change it to see how much of a result is chance.", "train.seed=2"},
    {"train.max_bad_steps",
     "A step whose loss or gradient is not finite (NaN or infinity) changes nothing. After so many of them in a row "
     "the run ends with exit code 7 and keeps its last checkpoint.",
     "Rarely. When runs end this way, lower optimizer.learning_rate instead.", "train.max_bad_steps=20"},
    {"train.pad_row",
     "Many checkpoints name a padding token (pad_token_id). frozen: its row of the embedding has no gradient and stays "
     "as it is, which is what transformers does. trained: it is a row like any other.",
     "Choose trained where the padding token occurs in the data and means something. A run keeps it to its end.",
     "train.pad_row=trained"},
    {"train.sample_every",
     "While it trains, mop can write a little text with the model, to show what it has learned so far. A number is the "
     "steps between two samples; 0 shows one when training ends; -1 none.",
     "Turn it on when you watch a run. Samples are slow: for each token the whole text is computed again.",
     "train.sample_every=200"},
    {"train.sample_prompt",
     "The words that a sample of train.sample_every begins with. The model continues them, and both are printed.",
     "Take the beginning of something that the data contains, so that progress can be read.",
     "train.sample_prompt=Once upon a time"},
    {"train.sample_tokens",
     "How many tokens the model adds to the prompt in a sample. With bytes as tokens, 300 are about five lines of "
     "text.",
     "Raise it for models whose text needs longer to show its sense.", "train.sample_tokens=300"},
    /* ---- compute ---- */
    {"compute", "How arithmetic is done: in which type of number, on how many cores, and what is kept or made again.",
     "", "compute.type=bf16"},
    {"compute.type",
     "The type of weights and activations while computing. fp32 is exact enough for everything. bf16 takes half the "
     "memory; AdamW still works on the full 32 bits of each weight, so that nothing small is lost. fp64 is for proofs "
     "and slow.",
     "Take bf16 for large models, above all on processors with bf16 instructions (`mop doctor` says).",
     "compute.type=bf16"},
    {"compute.threads",
     "Threads that each rank computes with. 0 gives every rank an equal share of this machine's cores. The number has "
     "no effect on results, only on time.",
     "Set it when other programs need some of the cores. Ranks x threads beyond the cores only makes everything "
     "slower.",
     "compute.threads=4"},
    {"compute.activations",
     "The backward pass needs what the forward pass computed. keep holds all of it in memory. recompute holds only "
     "what attention gave and makes the rest again, which takes about a third more time and much less memory. Results "
     "are the same to the bit.",
     "Take recompute when a run does not fit.", "compute.activations=recompute"},
    /* ---- device, ranks ---- */
    {"device",
     "What computes. cpu takes the fastest kernels that this processor has; cpu:avx512bf16, cpu:avx512, cpu:avx2 and "
     "cpu:portable ask for one kind. cpu:plain runs the plain loops that define each op, and cpu:late delays "
     "everything at random; both are for tests. cuda:N is the N-th GPU: memory and the update are there, but no ops "
     "yet, so nothing trains on it. sim:NAME and sim:FILE.json only count memory, work and time of a machine, for `mop "
     "plan`.",
     "Leave cpu to train. Name a sim machine to plan for it.", "device=sim:h200"},
    {"ranks",
     "A rank is one worker of a run. Each has sequences of its own and a part of every weight. Ranks are threads of "
     "one process, unless mpirun starts them as processes: then its -n is the number, and ranks is left out. 0 means "
     "mpirun's n, or 1.",
     "On one machine one rank with many threads is simplest. More ranks divide memory over machines.", "ranks=4"},
    /* ---- optimizer ---- */
    {"optimizer",
     "How gradients change weights. mop has one optimizer, AdamW, exact in every layout, with a learning rate that "
     "rises (warmup) and then follows a schedule.",
     "", "optimizer.learning_rate=1e-3"},
    {"optimizer.learning_rate",
     "How far one step moves the weights: the highest value of the schedule. It is the setting that decides most about "
     "a run. Too high, and the loss jumps or becomes NaN; too low, and it hardly falls.",
     "Small models from random weights like 1e-3 and more, large ones 1e-4 to 4e-4, fine-tuning 1e-6 to 5e-5.",
     "optimizer.learning_rate=1e-3"},
    {"optimizer.beta1",
     "AdamW follows the mean of past gradients. At each step the old mean keeps this share, and the new gradient gets "
     "the rest: 0.9 remembers about 10 steps.",
     "Rarely.", "optimizer.beta1=0.9"},
    {"optimizer.beta2",
     "AdamW divides by the size of past gradients, whose squares are averaged in the same way: 0.95 remembers about 20 "
     "steps, 0.999 about 1000.",
     "Raise it for very small batches; 0.95 is usual for language models.", "optimizer.beta2=0.99"},
    {"optimizer.epsilon",
     "A small number added where AdamW divides, so that gradients near zero do not become huge steps.", "Rarely.",
     "optimizer.epsilon=1e-6"},
    {"optimizer.weight_decay",
     "Pulls every weight a little towards zero at each step, by this fraction of the learning rate, apart from the "
     "gradient. It keeps weights from growing and helps against learning by heart.",
     "0.1 is usual for training from nothing; 0 to 0.01 for fine-tuning.", "optimizer.weight_decay=0.01"},
    {"optimizer.clip",
     "When the gradient of all weights together is longer than this, it is shortened to it. One odd batch then cannot "
     "throw the model off. 0 turns it off. The length before clipping is `norm` in the output.",
     "Rarely. A norm that lies far above 1 all the time asks for a lower learning rate, not for another clip.",
     "optimizer.clip=0.5"},
    {"optimizer.schedule",
     "The course of the learning rate after warmup, down to optimizer.minimum at train.steps: cosine (slow, fast, "
     "slow), linear, or constant, which does not fall.",
     "Take constant when you do not know yet how long a run will be.", "optimizer.schedule=linear"},
    {"optimizer.warmup",
     "In the first steps the learning rate rises from nearly zero to its full value, since AdamW does not know yet how "
     "large gradients are. It is counted in steps.",
     "A hundred to a few thousand steps for long runs; about 2 % of train.steps is a fair start.",
     "optimizer.warmup=100"},
    {"optimizer.minimum",
     "Where the schedule ends, as a fraction of optimizer.learning_rate: 0.1 ends at a tenth of it.",
     "0 for a last run to the end; 0.1 when the run may go on later.", "optimizer.minimum=0"},
    {"optimizer.update",
     "Inside, a weight can be changed at the end of its step (blocking) or when its layer is next needed (deferred), "
     "while other layers compute. What the model sees is the same to the bit.",
     "Only to compare times.", "optimizer.update=blocking"},
    /* ---- loss ---- */
    {"loss",
     "Two small extra losses that keep a mixture of experts healthy. Both are off or on as the model's config.json "
     "says, unless they are set here.",
     "", "loss.balance=0.01"},
    {"loss.balance",
     "The weight of the balance loss, which is least when all experts get the same number of tokens. -1 takes "
     "router_aux_loss_coef of the model's config. The output shows the loss itself as `balance`: as much as a token "
     "has experts when all is even, more when it is not.",
     "Raise it when a few experts get nearly all tokens; lower it when it disturbs the main loss.",
     "loss.balance=0.01"},
    {"loss.router_z",
     "The weight of a loss that keeps the router's scores small, for stability in bf16. -1 takes router_z_loss_coef of "
     "the model's config, where it is mostly 0.",
     "Try 0.001 when the router's scores grow and the loss becomes unsteady.", "loss.router_z=0.001"},
    /* ---- checkpoint ---- */
    {"checkpoint",
     "When a run writes its state to disk. A checkpoint holds weights and AdamW's state, is a Hugging Face directory "
     "as it is, and can be resumed with any number of ranks. They lie in RUN/ckpt/step-....",
     "", "checkpoint.every=200"},
    {"checkpoint.every",
     "Steps between two checkpoints. One is also written at the end, and when the run is stopped by Ctrl-C or a "
     "signal. 0: only those.",
     "As often as you can bear to lose work when a machine dies; writing stops training for the time it takes.",
     "checkpoint.every=200"},
    {"checkpoint.keep", "How many of the newest checkpoints stay on the disk; older ones are deleted. 0 keeps all.",
     "Raise it to compare stages of a run, and watch the disk: in fp32 a checkpoint takes 12 bytes a parameter.",
     "checkpoint.keep=10"},
    /* ---- mixture ---- */
    {"mixture",
     "How the parts of the model are divided among the ranks. Each part is divided in its own way: dense weights over "
     "some number of ranks, experts over another, sequences over a third. Each number is a divisor of `ranks`, or 1, "
     "which does not divide that part. No choice changes what the model learns, only memory, time and traffic; `mop "
     "plan` shows these before a run. docs/parallel.md has drawings.",
     "", "mixture.expert=4"},
    {"mixture.dense",
     "Weights that every token needs (attention, norms, router) are cut into so many pieces, one for each rank of a "
     "group, with their gradients and AdamW's state. A layer is put together just before it is used. It is what others "
     "call ZeRO-3 or FSDP. 0 cuts them over all ranks.",
     "Leave 0 for least memory. With several machines the ranks of one machine save traffic between machines.",
     "mixture.dense=4"},
    {"mixture.expert",
     "The experts of every layer are dealt out to groups of so many ranks: with 8 experts and mixture.expert=4 each "
     "rank holds 2 of them. A token that the router sends to an expert elsewhere travels there and back. With 1 every "
     "rank has all experts and no token travels. It is what others call expert parallelism.",
     "Raise it when the experts do not fit in a rank's memory, up to the ranks of one machine, since tokens travel in "
     "every layer.",
     "mixture.expert=4"},
    {"mixture.expert_shard",
     "Each expert's weights are cut into so many pieces on as many ranks, and put together for the layer before it is "
     "used. Tokens stay where they are; weights travel.",
     "Use it beside mixture.expert when experts are still too large, above all between machines: weights travel once a "
     "step, tokens in every layer. mixture.expert x mixture.expert_shard must divide the ranks.",
     "mixture.expert_shard=2"},
    {"mixture.dispatch_tokens",
     "A rank sends at most so many of its tokens to the experts at a time, in as many rounds as it takes. Memory for "
     "the experts' work then has a bound, however unevenly the router chooses. 0 sends all at once.",
     "Lower it when `mop plan` shows much memory for experts. Two or more rounds also hide traffic behind work.",
     "mixture.dispatch_tokens=1024"},
    {"mixture.balance_imports",
     "When one rank's experts are wanted far more than others', ranks with less to do may borrow so many of its "
     "experts and take over a part of their tokens. The result is the same. 0 turns it off.",
     "Try 1 or 2 when `load` is far above 1 and the slowest rank holds up the others. The borrowed weights need "
     "memory.",
     "mixture.balance_imports=2"},
    {"mixture.balance_threshold",
     "Work is moved to other ranks only when the busiest rank of a group has more than this many times the mean. It "
     "matters only with mixture.balance_imports.",
     "Raise it when moving experts costs more than it saves.", "mixture.balance_threshold=1.5"},
    {"mixture.ulysses",
     "So many ranks share one sequence. For attention they exchange, so that each has all rows of a part of the heads; "
     "all else each does for its own rows. It is what DeepSpeed calls Ulysses. It must divide the number of query "
     "heads.",
     "Use it for sequences too long for one rank, among ranks with a fast link.", "mixture.ulysses=4"},
    {"mixture.ulysses_heads",
     "With mixture.ulysses, a rank has so many key and value heads (and the query heads that read them) in full length "
     "at a time. Fewer need less memory and more exchanges.",
     "Raise it when memory allows and exchanges are slow.", "mixture.ulysses_heads=2"},
    {"mixture.ring",
     "So many ranks share one sequence by stretches of it. Keys and values go round in a ring, while each rank works "
     "on its own rows. It is what others call ring attention or context parallelism. It can be combined with "
     "mixture.ulysses.",
     "Use it for very long sequences, or beyond the number of heads, or over slow links.", "mixture.ring=2"},
    {"mixture.vocabulary",
     "The embedding and the output head are cut by words over so many ranks, which share the work of the loss. With 1 "
     "both are treated like other dense weights.",
     "Use it when the vocabulary is large (100 thousand and more) and logits or head fill the memory.",
     "mixture.vocabulary=4"},
    {"mixture.loss_chunk",
     "Logits, a number for each word of the vocabulary, are computed for so many tokens at a time, since all at once "
     "would take more memory than the rest of the model.",
     "Lower it when the loss takes too much memory in `mop plan`; higher values are a little faster.",
     "mixture.loss_chunk=512"},
    {"mixture.loss_travel",
     "With mixture.vocabulary > 1 either hidden states go to the parts of the head (activations) or the parts go round "
     "(weights). Both give the exact loss. auto takes whichever moves fewer bytes.",
     "Only to compare.", "mixture.loss_travel=weights"},
    /* ---- sim, comm ---- */
    {"sim", "For `mop plan` and its like: what a device that only counts assumes where a real one would have data.", "",
     "sim.routing=worst"},
    {"sim.routing",
     "How many tokens each expert gets in a simulated step: balanced (all the same), worst (all to the same rank), or "
     "replay:FILE, what a real run wrote with sim.record.",
     "Only to study plans: `mop plan` takes worst for memory and balanced for time by itself.", "sim.routing=worst"},
    {"sim.record",
     "A file into which a real run writes how many tokens each expert got, for sim.routing=replay:FILE. With several "
     "ranks each adds its number to the name. Empty: none.",
     "Only to compare a plan with what happened.", "sim.record=routing.bin"},
    {"comm", "How ranks wait for one another.", "", "comm.timeout=600"},
    {"comm.timeout",
     "When a rank has waited so many seconds for others, the run ends with exit code 6, says which rank did not "
     "answer, and prints what each was doing.",
     "Raise it when a step takes minutes or a disk may stall; lower it to notice a dead machine sooner.",
     "comm.timeout=600"},
};

const Page *manual_page(const char *name) {
    for (size_t i = 0; i < COUNT(pages); i++)
        if (strcmp(pages[i].name, name) == 0) return &pages[i];
    return NULL;
}
