//! `sociblk config`: settings printed, checked, translated.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::args::GlobalArgs;
use super::output;
use crate::config::soci::Finding;
use crate::config::{Config, ConfigError, Loaded, Problem};
use crate::node::serve::Address;

/// Commands on settings.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Print a settings file in which every setting is explained and has its default.
    Default,
    /// Print the settings that a daemon would have: the file, with what the command line and variables say.
    Dump {
        /// As of `serve`.
        #[arg(long, value_name = "ADDRESS", env = "SOCIBLK_ADDRESS")]
        address: Option<Address>,
    },
    /// Say everything that is wrong in a settings file, or what becomes of each key of a file of SOCI's snapshotter.
    ///
    /// Exit status: 0 the file can be used, 1 something in it is wrong, or it cannot be read.
    Check {
        /// The file; default: that of --config, or /etc/sociblk/config.toml.
        file: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a settings file with the same meaning as FILE, usually one of SOCI's snapshotter, every setting explained.
    Convert {
        /// The file.
        file: PathBuf,
    },
}

/// What `check --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    path: &'a Path,
    format: &'a str,
    problems: &'a [Problem],
    keys: &'a [Finding],
}

/// Runs `sociblk config`.
pub fn run(global: &GlobalArgs, command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Default => print(&Config::default().commented()?),
        ConfigCommand::Dump { address } => {
            let mut config = for_daemon(global)?;
            if let Some(address) = address {
                config.snapshotter.address = address.to_string();
            }
            print(&config.dump()?);
        }
        ConfigCommand::Check { file, json } => return check(file.as_deref().or(global.config.as_deref()), *json),
        ConfigCommand::Convert { file } => {
            let loaded = Config::read(Some(file))?;
            warn(&loaded);
            print(&loaded.config.commented()?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The settings of a daemon. What it would hear of only when something is amiss later is logged.
pub(super) fn for_daemon(global: &GlobalArgs) -> anyhow::Result<Config> {
    let loaded = Config::read(global.config.as_deref())?;
    warn(&loaded);
    let mut config = loaded.config;
    global.registry.settle(&mut config.registry)?;
    Ok(config)
}

fn warn(loaded: &Loaded) {
    for finding in loaded.soci.iter().flatten().filter(|finding| finding.is_worth_a_warning()) {
        let line = finding.line.unwrap_or_default();
        tracing::warn!(
            "{}: line {line}: {} = {}: {}",
            loaded.path.display(),
            finding.key,
            finding.value,
            finding.meaning
        );
    }
}

fn check(file: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let (path, problems, soci) = match Config::read(file) {
        Ok(loaded) => (loaded.path, Vec::new(), loaded.soci),
        Err(ConfigError::Wrong { path, problems }) => (path, problems, None),
        Err(error) => return Err(error.into()),
    };
    let status = if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) };
    let format = if soci.is_some() { "soci" } else { "sociblk" };
    let keys = soci.unwrap_or_default();
    if json {
        output::json(&Report { path: &path, format, problems: &problems, keys: &keys })?;
        return Ok(status);
    }
    for problem in &problems {
        output::line(&format!("{}: {problem}", path.display()));
    }
    if format == "soci" {
        let row = |finding: &Finding| {
            let line = finding.line.map(|line| line.to_string()).unwrap_or_default();
            vec![line, finding.key.clone(), finding.value.clone(), finding.meaning.to_string()]
        };
        output::table(&["LINE", "KEY", "VALUE", "HERE"], &keys.iter().map(row).collect::<Vec<_>>());
        output::line(&format!(
            "{}: settings of SOCI's snapshotter, which are taken as they are; `sociblk config convert {}` translates them",
            path.display(),
            path.display()
        ));
    } else if problems.is_empty() {
        let absent = file.is_none() && !path.exists();
        let how = if absent { "not there: the defaults hold" } else { "good" };
        output::line(&format!("{}: {how}", path.display()));
    }
    Ok(status)
}

fn print(text: &str) {
    output::line(text.trim_end());
}
