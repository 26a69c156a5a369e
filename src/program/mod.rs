//! Which parts of an image its command needs before it does anything of its own: the program, the interpreter of a script
//! and what that runs, the libraries that it is linked with, where the dynamic linker would find them, and the modules that a
//! Python program imports. Found out by looking at the image, without running it.
//!
//! It is a guess about what will be read first, never an order: what is wrong in it costs a few spans that are fetched
//! early, what is missing is fetched when it is read.

mod command;
mod elf;
mod python;
mod script;
mod stack;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::io;

pub use command::Command;
use python::Python;
pub use stack::{Place, Stack};

use crate::units::{LayerOffset, LayerRange};

/// Most files that are looked at: a large program has some two hundred libraries, one in Python some thousand modules.
const MAX_FILES: usize = 4096;
/// Words of a command that are taken for programs or files.
const MAX_WORDS: usize = 32;
/// Directories of a list in which programs or libraries are looked for.
const MAX_DIRS: usize = 64;
/// Longest path that is looked up (Linux `PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;
/// Files up to this size are wanted whole. Of longer ones only what the linker reads: most of the rest is never touched.
const WHOLE_BYTES: u64 = 16 << 20;
/// How much of the beginning of a longer one.
const HEAD_BYTES: u64 = 1 << 20;
/// How much of a file is read to see what it is; as much of a script's first line the kernel reads (Linux
/// `include/uapi/linux/binfmts.h`, `BINPRM_BUF_SIZE`).
const LOOK_BYTES: u64 = 256;

/// Files of all programs that are linked with the C library read this.
const LINKER_CACHE: &[u8] = b"etc/ld.so.cache";

/// The layers' bytes.
pub trait Contents {
    /// Reads all of `range` of a layer, counted from the lowest.
    ///
    /// # Errors
    /// When the bytes cannot be had: the file is not looked into then.
    fn read(&mut self, layer: usize, range: LayerRange) -> io::Result<Vec<u8>>;
}

/// A part of a layer that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The layer, counted from the lowest.
    pub layer: usize,
    /// Its bytes.
    pub range: LayerRange,
}

/// What a file refers to, and which parts of it are read first where it is long.
#[derive(Default)]
struct Facts {
    files: Vec<Vec<u8>>,
    /// Modules of Python.
    modules: Vec<String>,
    parts: Vec<(u64, u64)>,
}

/// What `command` needs, in the order in which it is come across. Nothing where the image has no such program. Of files that
/// make no sense, or cannot be had, no more than themselves.
pub fn needed(stack: &Stack, command: &Command, contents: &mut dyn Contents) -> Vec<Wanted> {
    let mut look = Look {
        stack,
        command,
        contents,
        seen: HashSet::new(),
        wanted: Vec::new(),
        python: None,
        scripts: Vec::new(),
        modules: Vec::new(),
    };
    look.at(command.files(stack).collect());
    if let Some(python) = look.python.take() {
        let told = [command.python_modules(), std::mem::take(&mut look.modules)].concat();
        let modules = python.files(&look.scripts, told, command, look.contents, stack);
        look.at(modules.into());
    }
    look.wanted
}

/// A look through an image.
struct Look<'a> {
    stack: &'a Stack,
    command: &'a Command,
    contents: &'a mut dyn Contents,
    seen: HashSet<(usize, LayerOffset)>,
    wanted: Vec<Wanted>,
    /// The first interpreter of Python that was come across, and sources that it may be given.
    python: Option<Python>,
    scripts: Vec<Place>,
    /// Modules that shell scripts name.
    modules: Vec<String>,
}

impl Look<'_> {
    /// Takes in files, and what they refer to.
    fn at(&mut self, mut queue: VecDeque<Vec<u8>>) {
        // Whoever names more wants something else than to be started.
        queue.truncate(MAX_FILES);
        while let Some(path) = queue.pop_front() {
            let Some(place) = self.stack.file(&path) else { continue };
            let Some(data) = place.data.filter(|data| self.seen.insert((place.layer, data.start()))) else { continue };
            if self.seen.len() > MAX_FILES {
                break;
            }
            let facts = self.facts(&path, &place, data);
            self.modules.extend(facts.modules);
            queue.extend(facts.files);
            queue.truncate(MAX_FILES);
            let parts = if data.len_bytes() <= WHOLE_BYTES { vec![(0, data.len_bytes())] } else { facts.parts };
            let parts = std::iter::once((0, HEAD_BYTES.min(data.len_bytes()))).chain(parts);
            let wanted = parts.filter_map(|(at, len)| Some(Wanted { layer: place.layer, range: part(data, at, len)? }));
            self.wanted.extend(wanted);
        }
    }

    fn facts(&mut self, path: &[u8], place: &Place, data: LayerRange) -> Facts {
        let (stack, command) = (self.stack, self.command);
        // Compiled modules: nothing in them is looked for.
        if place.name.ends_with(b".pyc") {
            return Facts::default();
        }
        if self.python.is_none() {
            self.python = Python::of(path, place, command, stack);
        }
        let head = self.contents.read(place.layer, part(data, 0, LOOK_BYTES).unwrap_or(data)).unwrap_or_default();
        if let Some(behind) = head.strip_prefix(b"#!") {
            let line = behind.split(|byte| *byte == b'\n').next().unwrap_or_default();
            if line.windows(6).any(|word| word == b"python") {
                self.scripts.push(place.clone());
            }
            script::facts(line, (place.layer, data), command, self.contents, stack)
        } else if head.starts_with(&object::elf::ELFMAG) {
            elf::facts(place, data, command, self.contents, stack)
        } else {
            if place.name.ends_with(b".py") {
                self.scripts.push(place.clone());
            }
            Facts::default()
        }
    }
}

/// A name in a directory.
fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, name].join(&b'/')
}

/// `len` bytes of a file from `at` on, as far as it has them.
fn part(data: LayerRange, at: u64, len: u64) -> Option<LayerRange> {
    let start = data.start().get().checked_add(at)?;
    let end = start.saturating_add(len).min(data.end().get());
    LayerRange::new(LayerOffset::new(start), LayerOffset::new(end))
}
