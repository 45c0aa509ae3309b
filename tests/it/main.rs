//! One binary for all integration tests.

#![expect(clippy::unwrap_used, reason = "helpers outside #[test] functions may panic too")]

mod adversarial;
mod auth;
mod blocks;
mod cli;
mod compaction;
mod completions;
mod constraint;
mod engine;
mod equality;
mod fake_loader;
mod fake_model;
mod faults;
mod golden;
mod hostile_folder;
mod hostile_format;
mod http;
mod inspect;
mod lost_device;
mod metrics;
mod models;
mod numberless;
mod replicas;
mod response_formats;
mod served_formats;
mod simulation;
mod state;
mod store;
mod stream_validator;
mod tenants;
mod tidy;
mod tiny_model;
mod tokenizers;
mod top_scores;
