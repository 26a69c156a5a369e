//! The helper process: reads one request from its standard input, does it, and reports on its standard output.
//!
//! The report is a line of JSON per event: what is about to take effect (so that whoever has to kill this process knows
//! what to undo), and at last the result.

use std::fs::File;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::ops::{Prepared, Undo, run_undo};
use super::{MountError, MountOp, MountPath};
use crate::sys::namespace;

/// Longest request that is read: 500 layers with the longest paths, twice escaped.
const MAX_REQUEST_BYTES: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// Where to mount: a path that leads to a mount namespace.
    pub(super) namespace: Option<MountPath>,
    pub(super) task: Task,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    Execute(Vec<MountOp>),
    Undo(Vec<Undo>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// This is about to take effect.
    Will(Undo),
    /// All is over.
    Done(Result<(), MountError>),
}

/// Runs the helper: one request from `input`, events to `output`. May move the calling thread, and no other, into
/// another mount namespace.
///
/// # Errors
/// When `input` or `output` break; what was done then has been undone. A failed mount is no error here: it is reported.
pub fn run(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let request: Request = serde_json::from_reader(input.take(MAX_REQUEST_BYTES))?;
    let mut tell = |event: &Event| -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    };
    let result = serve(&request, &mut |undo| tell(&Event::Will(undo.clone())));
    tell(&Event::Done(result))
}

fn serve(request: &Request, announce: &mut dyn FnMut(&Undo) -> io::Result<()>) -> Result<(), MountError> {
    let enter = || match &request.namespace {
        Some(path) => File::open(path)
            .and_then(namespace::enter)
            .map_err(|error| MountError::system("enter the mount namespace", path.clone(), error)),
        None => Ok(()),
    };
    match &request.task {
        Task::Execute(ops) => {
            // Images are opened first: the caller may see files that its target namespace does not.
            let prepared = Prepared::open(ops)?;
            enter()?;
            prepared.execute(announce)
        }
        Task::Undo(steps) => {
            enter()?;
            run_undo(steps);
            Ok(())
        }
    }
}
