#![doc = include_str!("../ARCHITECTURE.md")]

pub mod cli;
pub mod config;
pub mod telemetry;

pub mod server;

pub mod completions;

pub mod responses;

pub mod store;

pub mod chat;

pub mod text;

pub mod engine;

pub mod hub;

pub mod model_dir;
