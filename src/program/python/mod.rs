//! The modules that a Python program imports before it does anything of its own. Their names stand in its sources, and where
//! the interpreter looks for them follows from where it lies itself (Python's documentation of `sys.path` and of `site`).
//!
//! Compiled modules (`__pycache__`) are what the interpreter reads; the sources beside them are only looked at here.

mod source;

use std::collections::{HashMap, HashSet};

use super::{Command, Contents, MAX_DIRS, MAX_FILES, MAX_WORDS, Place, Stack, join, part};
use crate::units::LayerOffset;
use source::Import;

/// Most names that are looked for: many stand for functions and not for modules.
const MAX_NAMES: usize = 1 << 16;
/// Most bytes of sources that are read: those of a large program several times.
const SOURCES_BYTES: usize = 64 << 20;
/// How much of a source is read.
const SOURCE_BYTES: u64 = 256 << 10;

/// Files that the C library reads for the interpreter: it wants UTF-8 (PEP 538), and its `time` the zone.
const LIBRARY_FILES: [&[u8]; 4] = [
    b"usr/lib/locale/C.utf8/LC_CTYPE",
    b"usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    b"usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache",
    b"etc/localtime",
];
/// What the interpreter imports by itself.
const STARTS: [&str; 5] = ["encodings", "encodings.aliases", "encodings.utf_8", "site", "sitecustomize"];
/// Ends of names of compiled extensions, behind the tag of the interpreter.
const EXTENSIONS: [&str; 4] =
    ["-x86_64-linux-gnu.so", "-aarch64-linux-gnu.so", "-x86_64-linux-musl.so", "-aarch64-linux-musl.so"];

/// An interpreter and where it looks for modules.
pub(super) struct Python {
    dirs: Vec<Vec<u8>>,
    /// Of compiled modules, as `cpython-311`.
    tag: String,
}

impl Python {
    /// The interpreter that a path leads to, if it is one: by the name of the file, as `python3.11`.
    pub(super) fn of(path: &[u8], place: &Place, command: &Command, stack: &Stack) -> Option<Self> {
        let version = std::str::from_utf8(place.name.strip_prefix(b"python")?).ok()?;
        let (major, minor) = version.split_once('.')?;
        let is_number = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(major) || !is_number(minor) {
            return None;
        }
        let prefix = parent(&place.dir);
        let mut dirs: Vec<Vec<u8>> = command.python_dirs().collect();
        // A virtual environment: its interpreter is a link to another one.
        let environment = join(parent(path), b"..");
        let environment = stack.file(&join(&environment, b"pyvenv.cfg")).map(|_| environment);
        let under = |base: &[u8], rest: &str| join(base, rest.as_bytes());
        // The second is that of Fedora and those that follow it.
        for lib in ["lib", "lib64"] {
            dirs.push(under(prefix, &format!("{lib}/python{version}")));
            dirs.push(under(prefix, &format!("{lib}/python{version}/lib-dynload")));
        }
        for lib in ["lib", "lib64"] {
            let site = format!("{lib}/python{version}/site-packages");
            dirs.extend(environment.iter().map(|environment| under(environment, &site)));
            dirs.extend([b"root/.local", prefix, b"usr/local"].map(|base: &[u8]| under(base, &site)));
        }
        // As Debian has it.
        dirs.push(format!("usr/local/lib/python{version}/dist-packages").into_bytes());
        dirs.push(format!("usr/lib/python{major}/dist-packages").into_bytes());
        dirs.retain(|dir| stack.is_dir(dir));
        Some(Self { dirs, tag: format!("cpython-{major}{minor}") })
    }

    /// The files of the modules that `scripts` import and of those that were `told`, in the order in which they are read.
    pub(super) fn files(
        mut self,
        scripts: &[Place],
        told: Vec<String>,
        command: &Command,
        contents: &mut dyn Contents,
        stack: &Stack,
    ) -> Vec<Vec<u8>> {
        let mut walk = Walk { stack, contents, left_bytes: SOURCES_BYTES, read: HashSet::new(), mains: HashSet::new() };
        let mut names: Vec<String> = STARTS.iter().map(|name| (*name).to_owned()).collect();
        let mut named = Vec::new();
        self.dirs.insert(0, command.work_dir().to_vec());
        for script in scripts.iter().take(MAX_DIRS) {
            let Some(text) = walk.text(script) else { continue };
            // Where a script lies is looked first.
            self.dirs.insert(0, script.dir.clone());
            names.extend(source::imports(&text, true).iter().flat_map(|import| absolute(import, "", true)));
            named.extend(source::paths(&text).take(MAX_FILES).map(|path| path.as_bytes().to_vec()));
        }
        let mut seen = HashSet::new();
        named.retain(|path| seen.insert(path.clone()));
        named.truncate(MAX_FILES);
        for name in told.into_iter().take(MAX_WORDS) {
            names.push("runpy".to_owned());
            walk.mains.extend([name.clone(), format!("{name}.__main__")]);
            names.extend([format!("{name}.__main__"), name]);
        }
        let mut seen = HashSet::new();
        self.dirs.retain(|dir| seen.insert(dir.strip_prefix(b"/").unwrap_or(dir).to_vec()));
        let modules = self.closure(names, &mut walk);
        LIBRARY_FILES.iter().map(|path| path.to_vec()).chain(modules).chain(named).collect()
    }

    /// The files of modules and of all that they import. What a module imports comes behind it and before what comes after it.
    fn closure(&self, names: Vec<String>, walk: &mut Walk<'_>) -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        // Of packages, the directories where their modules are.
        let mut seen: HashMap<String, Kind> = HashMap::new();
        let mut left = names;
        left.truncate(MAX_NAMES);
        left.reverse();
        while let Some(name) = left.pop() {
            if files.len() >= MAX_FILES || seen.len() >= MAX_NAMES || walk.stack.is_tired() {
                break;
            }
            if seen.contains_key(&name) {
                continue;
            }
            let package = name.rsplit_once('.').map(|(package, _)| package);
            let found = match package.map(|package| seen.get(package)) {
                // A module's packages are loaded first.
                Some(None) => {
                    let package = package.unwrap_or_default().to_owned();
                    left.extend([name, package]);
                    continue;
                }
                Some(Some(Kind::Module)) => None,
                Some(Some(Kind::Package(dir))) => {
                    self.find_in(dir, name.rsplit('.').next().unwrap_or_default(), walk.stack)
                }
                // The package may be one without a file of its own.
                Some(Some(Kind::Nothing)) | None => {
                    let path = name.replace('.', "/");
                    self.dirs.iter().find_map(|dir| self.find_in(dir, &path, walk.stack))
                }
            };
            let kind = match found {
                None => Kind::Nothing,
                Some(Module { file, source, package }) => {
                    files.push(file);
                    let is_main = walk.mains.contains(&name);
                    let text = source.and_then(|place| walk.text(&place)).unwrap_or_default();
                    let imports = source::imports(&text, is_main);
                    let more = imports.iter().flat_map(|import| absolute(import, &name, package.is_some()));
                    let room = MAX_NAMES.saturating_sub(left.len());
                    let mut more: Vec<String> = more.filter(|name| !seen.contains_key(name)).take(room).collect();
                    more.reverse();
                    left.extend(more);
                    package.map_or(Kind::Module, Kind::Package)
                }
            };
            seen.insert(name, kind);
        }
        files
    }

    /// A module of a directory, in the order in which the interpreter looks: a package, an extension, a source.
    fn find_in(&self, dir: &[u8], path: &str, stack: &Stack) -> Option<Module> {
        let base = join(dir, path.as_bytes());
        if let Some(module) = self.source(&base, "__init__", stack) {
            return Some(Module { package: Some(base), ..module });
        }
        let (folder, last) = (parent(&base), path.rsplit('/').next().unwrap_or_default());
        let source = self.source(folder, last, stack);
        let tagged = EXTENSIONS.iter().map(|end| format!(".{}{end}", self.tag));
        let mut ends = tagged.chain([".abi3.so".to_owned(), ".so".to_owned()]);
        let extension = ends.find_map(|end| {
            let file = [&base[..], end.as_bytes()].concat();
            stack.file(&file).is_some().then_some(file)
        });
        match (extension, source) {
            // The source beside it says what it imports.
            (Some(file), source) => Some(Module { file, source: source.and_then(|s| s.source), package: None }),
            (None, source) => source,
        }
    }

    /// The source `name` of a directory, and what the interpreter reads in its place where it is compiled.
    fn source(&self, dir: &[u8], name: &str, stack: &Stack) -> Option<Module> {
        let path = join(dir, format!("{name}.py").as_bytes());
        let source = stack.file(&path)?;
        let compiled = join(dir, format!("__pycache__/{name}.{}.pyc", self.tag).as_bytes());
        let file = if stack.file(&compiled).is_some() { compiled } else { path };
        Some(Module { file, source: Some(source), package: None })
    }
}

/// What a name means.
enum Kind {
    Nothing,
    Module,
    /// Where its modules are.
    Package(Vec<u8>),
}

/// Where sources are read, and how much of them.
struct Walk<'a> {
    stack: &'a Stack,
    contents: &'a mut dyn Contents,
    left_bytes: usize,
    /// Sources that were read: one under another name imports nothing else.
    read: HashSet<(usize, LayerOffset)>,
    /// Modules that are run, not imported.
    mains: HashSet<String>,
}

impl Walk<'_> {
    /// What a source says; `None` when it cannot be had, or was read already. Bytes that are no UTF-8 stand in names of nobody.
    fn text(&mut self, place: &Place) -> Option<String> {
        let range = part(place.data?, 0, SOURCE_BYTES)?;
        if self.left_bytes == 0 || !self.read.insert((place.layer, range.start())) {
            return None;
        }
        let bytes = self.contents.read(place.layer, range).ok()?;
        self.left_bytes = self.left_bytes.saturating_sub(bytes.len());
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Names of modules among words of a command: `-m module`, `module:object` and dotted names, as servers of applications are
/// told. Some are none, which nobody finds then.
pub(super) fn named<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut named = Vec::new();
    let mut before = "";
    for word in words {
        let word = word.trim_matches(['"', '\'', ';']);
        let starts = |text: &str| text.starts_with(|c: char| c == '_' || c.is_alphabetic());
        let name = match word.split_once(':') {
            Some((module, object)) if starts(object) => module,
            None if ["-m", "-A", "--app"].contains(&before) => word,
            None if word.contains('.') && !word.ends_with(".py") && !word.starts_with("python") => word,
            _ => "",
        };
        named.extend(source::module(name).filter(|name| starts(name)));
        before = word;
        if named.len() >= MAX_WORDS {
            break;
        }
    }
    named
}

/// A module that is there.
struct Module {
    /// What the interpreter reads.
    file: Vec<u8>,
    /// Where it says what it imports.
    source: Option<Place>,
    /// Of a package, its directory.
    package: Option<Vec<u8>>,
}

/// The modules that an import of module `by` may load.
fn absolute(import: &Import, by: &str, is_package: bool) -> Vec<String> {
    let mut from = Some(by).filter(|_| import.level > 0);
    let ups = if is_package { import.level.saturating_sub(1) } else { import.level };
    for _ in 0..ups {
        from = from.map(|name| name.rsplit_once('.').map_or("", |(package, _)| package));
    }
    let dotted = |left: &str, right: &str| match (left, right) {
        ("", name) | (name, "") => name.to_owned(),
        (left, right) => format!("{left}.{right}"),
    };
    let module = dotted(from.unwrap_or_default(), &import.module);
    let names = import.names.iter().map(|name| dotted(&module, name));
    std::iter::once(module.clone()).chain(names).filter_map(|name| source::module(&name)).collect()
}

/// The directory that a path lies in; the root where it names none.
fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').and_then(|at| path.get(..at)).unwrap_or_default()
}
