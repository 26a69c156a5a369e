//! `sociblk record`: what a workload reads first.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::args::GlobalArgs;
use super::commands::{absolute, mount_point, paths, text_only};
use super::explain::options;
use super::output;
use crate::node::client::ask;
use crate::node::explain::{Recordable, recordable};
use crate::node::protocol::{
    DEFAULT_NAMESPACE, DEFAULT_SOCKET, Outcome, RecordAction, RecordOrder, RecordReport, Request,
};

/// Commands on recordings. Each mount is recorded from its beginning on; `save` alone is enough for a workload that was
/// started right after its mount.
#[derive(Subcommand, Debug)]
pub enum RecordCommand {
    /// Begin anew: what is read from now on counts.
    Start(RecordArgs),
    /// Keep what was read so far as a load order, and go on.
    Save(SaveArgs),
    /// Keep what was read so far as a load order, and forget its label.
    Stop(SaveArgs),
    /// Begin anew, run a command to its end, and keep what was read meanwhile.
    Run {
        /// Of what, and under which label.
        #[command(flatten)]
        save: SaveArgs,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Whose reads.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// A mount point; an image that is mounted or shown to containerd, by its reference or its manifest's digest; or a
    /// container of containerd's, by its name or how it begins.
    #[arg(value_name = "DIR|IMAGE|CONTAINER")]
    pub target: String,
    /// Label of the load order: the name of the workload; default: that of `start`, else `default`.
    #[arg(long, short, visible_alias = "label")]
    pub name: Option<String>,
    /// The command that is recorded, as a JSON list of texts; default: the image's own.
    #[arg(long, value_name = "JSON")]
    pub entrypoint: Option<String>,
    /// containerd's socket; asked only for containers.
    #[arg(long, env = "CONTAINERD_ADDRESS", value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    pub containerd_address: PathBuf,
    /// containerd's namespace.
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = DEFAULT_NAMESPACE, value_name = "NAME")]
    pub namespace: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What to keep, and where.
#[derive(Args, Debug)]
pub struct SaveArgs {
    /// Whose reads.
    #[command(flatten)]
    pub of: RecordArgs,
    /// Write the document here, too.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Make no excerpt: the order alone.
    #[arg(long)]
    pub no_excerpt: bool,
}

/// Runs one of the commands; the status is that of a command that was run.
pub fn run(global: &GlobalArgs, command: &RecordCommand) -> anyhow::Result<ExitCode> {
    match command {
        RecordCommand::Start(of) => {
            let report = asked(global, of, &whose(global, of)?, RecordAction::Start, false)?;
            if of.json {
                output::json(&report)?;
            } else {
                output::line(&format!("recording {} as {:?}", report.reference, report.label));
            }
        }
        RecordCommand::Save(args) => save(global, args, &whose(global, &args.of)?, RecordAction::Save)?,
        RecordCommand::Stop(args) => save(global, args, &whose(global, &args.of)?, RecordAction::Stop)?,
        RecordCommand::Run { save: args, command } => {
            let Some((program, arguments)) = command.split_first() else { bail!("no command") };
            // Once: a container may be gone when the command is.
            let whose = whose(global, &args.of)?;
            asked(global, &args.of, &whose, RecordAction::Start, false)?;
            let status = Command::new(program).args(arguments).status().with_context(|| program.clone())?;
            save(global, args, &whose, RecordAction::Stop)?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn save(global: &GlobalArgs, args: &SaveArgs, whose: &Recordable, action: RecordAction) -> anyhow::Result<()> {
    let mut report = asked(global, &args.of, whose, action, !args.no_excerpt)?;
    let document = report.document.take().context("the daemon sent no load order")?;
    if let Some(file) = &args.output {
        std::fs::write(file, serde_json::to_vec(&document)?).with_context(|| file.display().to_string())?;
    }
    if args.of.json {
        return output::json(&report);
    }
    let RecordReport { reference, label, spans, layers, bytes, duration_ms, excerpt_bytes, no_excerpt, .. } = report;
    let excerpt =
        excerpt_bytes.map_or_else(String::new, |bytes| format!(" with an excerpt of {}", output::size(bytes)));
    output::line(&format!(
        "{reference}: {spans} spans of {layers} layers ({}) in {duration_ms} ms, kept as {label:?}{excerpt}",
        output::size(bytes)
    ));
    if let Some(why) = no_excerpt {
        output::note(&format!("no excerpt was made: {why}"));
    }
    Ok(())
}

/// Whose reads: a directory is a mount point, whatever else has its name.
fn whose(global: &GlobalArgs, args: &RecordArgs) -> anyhow::Result<Recordable> {
    let path = Path::new(&args.target);
    if path.is_absolute() || path.is_dir() {
        let dir = mount_point(&absolute(path)?);
        text_only(&dir)?;
        return Ok(Recordable { target: dir.display().to_string(), container: None, notes: Vec::new() });
    }
    let found = recordable(&paths(global)?, &options(&args.target, &args.containerd_address, &args.namespace)?)?;
    found.notes.iter().for_each(|note| output::note(note));
    Ok(found)
}

fn asked(
    global: &GlobalArgs,
    args: &RecordArgs,
    whose: &Recordable,
    action: RecordAction,
    excerpt: bool,
) -> anyhow::Result<RecordReport> {
    let target = whose.target.clone();
    let entrypoint = args.entrypoint.as_deref().map(serde_json::from_str).transpose();
    let entrypoint = entrypoint.context("--entrypoint wants a JSON list of texts, as [\"/bin/app\", \"serve\"]")?;
    let order = RecordOrder { action, target, label: args.name.clone(), entrypoint, excerpt };
    let answer = ask(&paths(global)?, Request::Record(order), &mut |_| {});
    let answer = match &whose.container {
        Some(container) => answer.with_context(|| format!("container {container}")),
        None => answer.map_err(Into::into),
    };
    match answer? {
        Outcome::Recorded(report) => Ok(report),
        _ => bail!("the daemon answered something else than was asked"),
    }
}
