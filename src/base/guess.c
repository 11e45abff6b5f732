/* Slips of the fingers by edit distance; names of other trainers (transformers, TRL, Axolotl, Megatron, torchtitan,
 * nanoGPT and their like) by a table, since no spelling leads from `lr` to optimizer.learning_rate. */
#define _POSIX_C_SOURCE 200809L
#include "base/guess.h"
#include "base/options.h"
#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* ---- Near names ------------------------------------------------------------------------------- */

static int least_of(int a, int b) {
    return a < b ? a : b;
}

/* Insertions, deletions, replacements and swaps of neighbours that turn a into b, three rows of the table at a time. */
static int edit_distance(const char *a, const char *b) {
    enum { LONGEST = sizeof(Shown) };
    int rows[3][LONGEST + 1], n = (int)strlen(b);
    MUST(n <= LONGEST);
    int *before = rows[0], *last = rows[1], *row = rows[2];
    for (int j = 0; j <= n; j++) last[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            row[j] = least_of(last[j - 1] + (a[i - 1] != b[j - 1]), 1 + least_of(last[j], row[j - 1]));
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) row[j] = least_of(row[j], before[j - 2] + 1);
        }
        int *oldest = before;
        before = last;
        last = row;
        row = oldest;
    }
    return last[n];
}

/* `further`: edits that the way to `name` counts more than its letters say. */
static bool nearer(const char *word, const char *name, int further, int *least) {
    int distance = edit_distance(word, name), limit = least_of(4, (int)strlen(word) / 3);
    if (distance > (limit ? limit : 1) || distance + further >= *least) return false;
    *least = distance + further;
    return true;
}

bool name_near(const char *word, const char *name, int *least) {
    return nearer(text_shown(word).text, name, 0, least);
}

static const char *last_name(const char *key) {
    const char *dot = strrchr(key, '.');
    return dot ? dot + 1 : key;
}

/* A right name in a wrong section, or in none, is nearer than its letters say. A section is a name too. */
static Hint nearest_key(const char *key) {
    Shown shown = text_shown(key);
    const char *word = last_name(shown.text);
    Hint hint = {"`mop help` lists all keys"};
    int least = NEAREST_NONE;
    for (int i = 0; i < option_count; i++) {
        const char *known = options[i].key;
        size_t section = option_section(&options[i]);
        char name[sizeof shown.text];
        snprintf(name, sizeof name, "%.*s", (int)section, known);
        bool whole = nearer(shown.text, known, 0, &least), last = nearer(word, last_name(known), 2, &least);
        if (whole || last) snprintf(hint.text, sizeof hint.text, "the nearest is %s", known);
        if (section && nearer(shown.text, name, 0, &least))
            snprintf(hint.text, sizeof hint.text, "the nearest is %s", name);
    }
    return hint;
}

/* ---- Names of other trainers ------------------------------------------------------------------ */

static const struct {
    const char *names; /* with a blank before and after each; small letters and underscores */
    const char *hint;
} foreign[] = {
    /* learning rate */
    {" lr max_lr peak_lr base_lr init_lr ", "here it is optimizer.learning_rate"},
    {" min_lr min_lr_ratio lr_min final_lr_frac ", "here it is optimizer.minimum, a fraction of the learning rate"},
    {" lr_scheduler lr_scheduler_type lr_schedule lr_decay_style scheduler ",
     "here it is optimizer.schedule: constant, linear or cosine"},
    {" warmup_steps num_warmup_steps warmup_iters lr_warmup_iters lr_warmup_steps ",
     "here it is optimizer.warmup, in steps"},
    {" warmup_ratio lr_warmup_fraction warmup_fraction ",
     "here it is optimizer.warmup, in steps: this ratio times train.steps"},
    {" lr_decay_iters lr_decay_steps ", "the schedule ends at train.steps"},
    /* optimizer */
    {" adam_beta1 beta_1 ", "here it is optimizer.beta1"},
    {" adam_beta2 beta_2 ", "here it is optimizer.beta2"},
    {" adam_betas betas ", "here they are optimizer.beta1 and optimizer.beta2"},
    {" adam_epsilon adam_eps eps ", "here it is optimizer.epsilon"},
    {" wd ", "here it is optimizer.weight_decay"},
    {" max_grad_norm grad_clip clip_grad gradient_clipping gradient_clip_val max_norm ", "here it is optimizer.clip"},
    {" optim optimizer_type optimizer_name ", "mop always uses AdamW; remove it"},
    /* batch and length */
    {" batch_size global_batch_size train_batch_size total_batch_size ",
     "here it is train.sequences: the sequences of a step, over all ranks"},
    {" per_device_train_batch_size per_gpu_train_batch_size micro_batch_size device_batch_size ",
     "here train.sequences counts a whole step over all ranks, and train.micro_batches its parts"},
    {" gradient_accumulation_steps grad_accum_steps gradient_accumulation accumulate_grad_batches grad_acc_steps ",
     "here it is train.micro_batches; train.sequences counts the whole step, all its parts together"},
    {" epochs num_epochs num_train_epochs max_epochs n_epochs train_epochs ",
     "mop counts steps, train.steps; an epoch has as many as the data has tokens, over train.sequences x "
     "train.sequence_length"},
    {" max_steps num_steps total_steps training_steps max_iters train_iters iterations num_iterations ",
     "here it is train.steps"},
    {" sequence_len seq_length seq_len max_seq_length max_seq_len max_length block_size context_length context_len "
     "cutoff_len model_max_length n_ctx ",
     "here it is train.sequence_length"},
    {" packing sample_packing group_by_length pad_to_sequence_len ",
     "documents are always packed, and none attends to another; remove it"},
    /* model */
    {" base_model model_name model_name_or_path pretrained_model_name_or_path model_id init_from pretrained ",
     "here it is model.path, a directory on this machine: mop downloads nothing"},
    {" config_name model_config_path ", "here it is model.config, a Hugging Face config.json"},
    {" tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_file tokenizer_model tokenizer_type ",
     "here it is data.tokenizer, a tokenizer.json"},
    {" model_type architectures hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_layers "
     "n_layer "
     "num_attention_heads n_head num_key_value_heads head_dim vocab_size num_experts num_local_experts "
     "num_experts_per_tok moe_router_topk rope_theta rms_norm_eps tie_word_embeddings ",
     "it belongs into the model's config.json, which model.config names"},
    {" aux_loss_coef router_aux_loss_coef moe_aux_loss_coeff load_balancing_loss_coef ", "here it is loss.balance"},
    {" router_z_loss_coef moe_z_loss_coeff z_loss z_loss_coef ", "here it is loss.router_z"},
    {" adapter lora peft use_lora qlora lora_r lora_alpha lora_dropout lora_target_modules ",
     "LoRA is not built: mop trains all weights; remove it"},
    {" load_in_8bit load_in_4bit quantization fp8 fp8_format ", "mop computes in fp32, bf16 or fp64: compute.type"},
    {" attn_implementation flash_attention use_flash_attn flash_attn use_flash_attention ",
     "mop has one attention, which never holds the whole matrix of scores; remove it"},
    {" torch_compile compile ", "mop is compiled already; remove it"},
    /* data */
    {" datasets dataset dataset_name dataset_path train_file train_files train_data data_dir training_data ",
     "here it is data.path: files or directories on this machine; mop downloads nothing"},
    {" val_data validation_file validation_data test_datasets val_set_size eval_dataset eval_steps eval_interval "
     "eval_every "
     "evaluation_strategy eval_strategy eval_iters do_eval ",
     "mop does not validate while it trains; `mop evaluate` measures a checkpoint on any text; remove it"},
    {" chat_template train_on_inputs completion_only_loss assistant_only_loss dataset_text_field ",
     "mop knows no chat format; give {\"input_ids\": ..., \"labels\": ...} lines, as docs/start.md shows"},
    {" num_workers dataloader_num_workers preprocessing_num_workers ", "data is read as it is needed; remove it"},
    /* numbers and machine */
    {" dtype torch_dtype precision mixed_precision bf16 tf32 ", "here it is compute.type: fp32, bf16 or fp64"},
    {" fp16 half ", "mop has no fp16; compute.type: bf16 takes as much memory and needs no loss scale"},
    {" random_seed data_seed manual_seed ", "here it is train.seed"},
    {" num_threads omp_num_threads threads ", "here it is compute.threads, of each rank"},
    {" gradient_checkpointing activation_checkpointing activation_checkpoint recompute recompute_granularity remat ",
     "here it is compute.activations: recompute"},
    {" device_type device_map accelerator ", "here it is device"},
    {" world_size num_gpus n_gpus gpus num_processes nproc_per_node num_nodes nnodes num_machines ",
     "here it is ranks, threads of one process; or leave it out and start with mpirun -n"},
    /* dividing */
    {" tp tensor_parallel tensor_parallel_size tensor_model_parallel_size tp_size ",
     "mop has no tensor parallelism: mixture.dense and mixture.expert_shard divide weights, mixture.ulysses attention"},
    {" pp pipeline_parallel pipeline_parallel_size pipeline_model_parallel_size pp_size ",
     "mop has no pipeline: every rank works on every layer; mixture.dense and mixture.expert divide what it holds"},
    {" dp ddp data_parallel data_parallel_size dp_size ddp_backend ",
     "every rank has sequences of its own, always; remove it"},
    {" ep expert_parallel expert_parallel_size expert_model_parallel_size ep_size ", "here it is mixture.expert"},
    {" cp sp context_parallel context_parallel_size context_parallel_degree sequence_parallel sequence_parallel_size ",
     "here it is mixture.ulysses, by heads, or mixture.ring, by stretches of the sequence"},
    {" zero zero_stage zero_optimization fsdp fsdp_config deepspeed sharding use_distributed_optimizer ",
     "here it is mixture.dense: weights, gradients and AdamW's state are divided among all ranks unless it says "
     "otherwise"},
    {" cpu_offload offload offload_optimizer ", "moving state out of memory is not built; remove it"},
    /* files and words */
    {" output_dir out_dir save_dir checkpoint_dir logging_dir run_name ",
     "it is no setting: --run DIR on the command line says where a run lives"},
    {" save_steps save_interval save_every save_freq checkpoint_interval ", "here it is checkpoint.every"},
    {" save_total_limit keep_last_n max_checkpoints ", "here it is checkpoint.keep"},
    {" resume resume_from_checkpoint auto_resume_from_checkpoints ",
     "the same command continues by itself from the run's newest checkpoint; remove it"},
    {" logging_steps log_interval log_every log_freq report_to wandb wandb_project use_wandb tensorboard "
     "tensorboard_dir ",
     "every step is a line of metrics.jsonl in the run's directory; remove it"},
    {" temperature top_p max_new_tokens prompt ",
     "it is no setting: --temperature, --top-p, --tokens and --prompt of mop generate"},
    {" trust_remote_code hub_model_id push_to_hub ", "mop neither runs a model's code nor talks to a hub; remove it"},
};

const char *foreign_hint(const char *name) {
    char word[64];
    int n = snprintf(word, sizeof word, " %s ", last_name(name));
    if (n < 3 || n >= (int)sizeof word || strpbrk(word + 1, " ") != word + n - 1) return NULL;
    for (char *c = word; *c; c++) *c = *c == '-' ? '_' : (char)tolower((unsigned char)*c);
    for (size_t i = 0; i < COUNT(foreign); i++)
        if (strstr(foreign[i].names, word)) return foreign[i].hint;
    return NULL;
}

Hint key_hint(const char *key) {
    Hint hint;
    const char *ours = foreign_hint(key);
    if (!ours) return nearest_key(key);
    snprintf(hint.text, sizeof hint.text, "%s", ours);
    return hint;
}
