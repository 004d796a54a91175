"""What keys of TRL, axolotl, LLaMA-Factory and ms-swift are called here; docs/recipes.md has the same table."""

from collections.abc import Mapping

OTHER_NAMES: Mapping[str, str] = {
    "model": "base_model model_name_or_path model_id_or_path model_name",
    "revision": "model_revision revision_of_model",
    "dtype": "torch_dtype",
    "attn_implementation": "attn_impl flash_attn flash_attention sdp_attention xformers_attention",
    "quantization: nf4": "load_in_4bit quantization_bit quant_bits quant_method bnb_4bit_quant_type",
    "template": "chat_template chat_template_path chat_template_jinja custom_chat_template",
    "template_kwargs": "chat_template_kwargs",
    "lora": "adapter finetuning_type train_type tuner_type use_peft peft",
    "lora.r": "rank lora_r lora_rank",
    "lora.lora_alpha": "alpha lora_alpha",
    "lora.lora_dropout": "dropout lora_dropout",
    "lora.target_modules": "lora_target lora_target_modules lora_target_linear target_modules modules",
    "lora.use_dora": "use_dora peft_use_dora",
    "lora.use_rslora": "use_rslora peft_use_rslora rslora",
    "data.sources": "dataset datasets dataset_name dataset_mixture dataset_path dataset_dir",
    "data.max_tokens": "sequence_len cutoff_len max_length max_seq_length max_seq_len model_max_length",
    "data.packing": "packing sample_packing neat_packing packing_strategy multipack",
    "data.supervise": "train_on_inputs train_on_prompt mask_history roles_to_train assistant_only_loss loss_scale",
    "data.too_long": "truncation_strategy truncation_mode excess_length_strategy",
    "data.validation_rows": "val_set_size val_size split_dataset_ratio test_size",
    "data.num_proc": "dataset_num_proc preprocessing_num_workers dataset_processes",
    "data.sources[].rows": "max_samples max_train_samples",
    "train.learning_rate": "lr learning_rate",
    "train.lr_scheduler_type": "lr_scheduler lr_schedule scheduler lr_scheduler_type learning_rate_scheduler",
    "train.lr_scheduler_kwargs": "cosine_min_lr_ratio cosine_constant_lr_ratio lr_scheduler_args",
    "train.warmup_steps": "warmup warmup_ratio warmup_steps num_warmup_steps lr_warmup_steps",
    "train.optim": "optim optimizer optim_type",
    "train.weight_decay": "wd weight_decay",
    "train.max_grad_norm": "max_grad_norm gradient_clipping clip_grad_norm grad_clip",
    "train.per_device_train_batch_size": "micro_batch_size batch_size train_batch_size per_device_train_batch_size",
    "train.gradient_accumulation_steps": "gradient_accumulation grad_accum gradient_accumulation_steps",
    "train.gradient_checkpointing": "gradient_checkpointing activation_checkpointing",
    "train.num_train_epochs": "epochs num_epochs num_train_epochs",
    "train.max_steps": "max_steps total_steps num_steps",
    "train.save_steps": "save_steps save_interval saves_per_epoch",
    "train.eval_steps": "eval_steps eval_interval evals_per_epoch",
    "train.logging_steps": "logging_steps log_interval log_every",
    "train.bf16": "bf16 mixed_precision",
    "train.report_to": "report_to use_wandb use_swanlab use_mlflow wandb wandb_project wandb_entity wandb_mode",
    "train.run_name": "run_name wandb_name wandb_run_id",
    "train.beta": "beta dpo_beta rl_beta pref_beta",
    "train.loss_type": "loss_type rlhf_type dpo_loss_type pref_loss rl",
    "train.loss_type: [sigmoid, sft], train.loss_weights: [1, ALPHA]": "rpo_alpha pref_ftx",
    "train.label_smoothing": "label_smoothing dpo_label_smoothing",
    "train.simpo_gamma": "simpo_gamma pref_gamma",
    "reference": "ref_model ref_adapter ref_model_name_or_path",
    "url": "base_url api_base openai_api_base",
    "key_env": "api_key openai_api_key api_token",
    "launch": "deepspeed fsdp fsdp_config deepspeed_config",
    "dualign publish": "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo export_hub_model_id",
    "nowhere: all parameters have one learning rate": "lr_groups param_groups loraplus_lr_ratio loraplus_lr_embedding "
    "embedding_lr embedding_lr_scale vit_lr aligner_lr",
}
_HERE = {name: here for here, names in OTHER_NAMES.items() for name in names.split()}


def name_here(word: str) -> str | None:
    """Return the key, with its place, that another tool calls `word`."""
    return _HERE.get(word.lower())
