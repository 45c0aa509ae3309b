//! The command line.

mod bench;
mod checked_model;
mod doctor;
mod gpu;
mod inspect;
mod key;
mod loader;
mod machine;
mod memory;
mod progress;
mod pull;
mod serve;

use crate::{
    config::{Config, Origins, Overrides, RuntimeConfig},
    engine::{LoadError, Runtime},
    model_dir::write_manifest,
};
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Serves exported ONNX language models over the OpenAI Responses API.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models until SIGTERM or SIGINT.
    ///
    /// Ends with 0 after a signal, with 1 and a sentence where something is wrong at the start, with 70 where an engine has
    /// failed, and with 71 where a device was lost. After the last two, start it again.
    Serve {
        /// A model folder, or a repository on the hub (org/name); without any, those of the config. Served under its own name.
        #[arg(value_name = "MODEL")]
        models: Vec<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Fetch a model from the Hugging Face hub, or what is missing of it.
    Pull {
        #[command(flatten)]
        pull: pull::PullArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Make an API key: show it once, on standard error, and print the entry of the configuration that lets it in.
    Key(key::KeyArgs),
    /// Print every setting's effective value and where it came from.
    Config(ConfigArgs),
    /// Tell what a model folder holds, how it will be served and what is wrong with it.
    Inspect {
        /// A folder as exported to Hugging Face.
        dir: PathBuf,
        #[command(flatten)]
        variant: VariantArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Check the runtime library, the execution providers, the memory and every configured model, and tell what to mend.
    Doctor(ConfigArgs),
    /// Write manifest.json into a model folder: the SHA-256 of every file, which is compared before each load.
    Manifest {
        /// A folder as exported to Hugging Face.
        dir: PathBuf,
    },
    /// Measure a model in this process: prefill, decode by number of sequences, and what the engine itself costs.
    Bench {
        #[command(flatten)]
        bench: bench::BenchArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Args, Debug)]
struct ConfigArgs {
    /// A TOML file with settings that differ from the defaults; later ones win.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One setting, such as server.port=9000; wins over all files and the environment.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args, Debug)]
struct VariantArgs {
    /// Which graph, such as q4f16; without it that of `loading.variant`, or the one that suits this machine best.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
}

impl VariantArgs {
    fn or_configured<'v>(&'v self, config: &'v Config) -> &'v str {
        self.variant.as_deref().unwrap_or(&config.loading.variant)
    }
}

impl ConfigArgs {
    fn load(self) -> anyhow::Result<(Config, Origins)> {
        let overrides = Overrides { files: self.config, environment: env::vars_os().collect(), settings: self.set };
        Config::load(&overrides).context("the configuration is not valid")
    }
}

/// A command's exit status where nothing is wrong.
const SUCCESS: u8 = 0;
/// And where something is, which was told in one sentence.
const FAILURE: u8 = 1;

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    ExitCode::from(report(execute(Cli::parse().command)))
}

fn execute(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Serve { models, mut config } => {
            config.set.extend(serve::setting(&models)?);
            serve::run(config.load()?.0)
        }
        Command::Pull { pull, config } => pull::run(&pull, &config.load()?.0),
        Command::Key(args) => key::run(&args),
        Command::Config(args) => {
            for (key, (value, origin)) in args.load()?.1 {
                print_line(format_args!("{key} = {value}  # {origin}"))?;
            }
            Ok(SUCCESS)
        }
        Command::Inspect { dir, variant, config } => {
            let (config, _) = config.load()?;
            inspect::run(&dir, variant.or_configured(&config), &config)
        }
        Command::Doctor(args) => doctor::run(&args.load()?.0),
        Command::Manifest { dir } => {
            let (path, num_files) = write_manifest(&dir)?;
            print_line(format_args!("{} lists {num_files} files", path.display()))?;
            Ok(SUCCESS)
        }
        Command::Bench { bench, config } => {
            let (config, _) = config.load()?;
            bench::run(&bench, &config, &runtime(&config.runtime)?)
        }
    }
}

/// Loads ONNX Runtime from where the config or the environment says.
fn runtime(config: &RuntimeConfig) -> Result<Runtime, LoadError> {
    let library = Some(config.library.as_path()).filter(|path| !path.as_os_str().is_empty());
    let from_environment = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    let runtime = Runtime::load(library, from_environment.as_deref().map(Path::new))?;
    let runtime = runtime.with_cuda_libraries(&config.cuda_libraries, |name| env::var_os(name));
    Ok(runtime.with_tensorrt_cache(config.tensorrt_cache(|name| env::var_os(name))))
}

/// Tells the person at the terminal what went wrong; gives the exit status.
fn report(result: anyhow::Result<u8>) -> u8 {
    result.unwrap_or_else(|error| {
        use std::io::Write;
        // `{:#}` joins the causes into one sentence. Nobody is left to tell if standard error is closed.
        let _ = writeln!(std::io::stderr(), "ortolan: {error:#}");
        FAILURE
    })
}

/// Writes to standard output; unlike `println!`, a closed pipe is an error and not a panic.
fn print_line(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}").context("standard output cannot be written")
}
