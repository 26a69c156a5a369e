//! What an image runs by itself, and where its environment says that programs are.

use super::{LINKER_CACHE, MAX_DIRS, MAX_WORDS, Stack, python, script};

/// Where programs are looked for without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command of an image config.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Command {
    /// The entrypoint and its arguments.
    pub words: Vec<String>,
    path: String,
    library_path: String,
    python_path: String,
    work_dir: String,
}

#[derive(serde::Deserialize, Default)]
struct Document {
    #[serde(default)]
    config: Option<Run>,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
}

impl Command {
    /// Of an image config (OCI image specification, `config.md`). What is no config has no words.
    #[must_use]
    pub fn of_config(config: &[u8]) -> Self {
        let document = serde_json::from_slice::<Document>(config).unwrap_or_default();
        let Run { entrypoint, cmd, env, working_dir } = document.config.unwrap_or_default();
        let env = env.unwrap_or_default();
        let variable = |name: &str| {
            let value = |line: &String| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            env.iter().rev().find_map(value).unwrap_or_default()
        };
        Self {
            words: entrypoint.into_iter().chain(cmd).flatten().collect(),
            path: variable("PATH"),
            library_path: variable("LD_LIBRARY_PATH"),
            python_path: variable("PYTHONPATH"),
            work_dir: working_dir.unwrap_or_default(),
        }
    }

    /// The files among its words. Also those behind the first, since an entrypoint often runs what it is given: programs, files
    /// of the directory that it runs in, and what a shell is told (`sh -c "exec server"`).
    pub(super) fn files(&self, stack: &Stack) -> impl Iterator<Item = Vec<u8>> {
        let mut files: Vec<Vec<u8>> = Vec::new();
        for (at, word) in self.words.iter().enumerate().take(MAX_WORDS) {
            let found = self.find(word, stack);
            files.extend(found.or_else(|| self.beside(word, stack).filter(|_| at > 0)));
            let told = self.words.get(at + 1).filter(|flags| flags.starts_with('-') && flags.contains('c'));
            if let Some(text) = told.and_then(|_| self.words.get(at + 2)).filter(|_| script::is_shell(word)) {
                files.extend(script::of_text(text, self, stack));
            }
        }
        if !files.is_empty() {
            files.push(LINKER_CACHE.to_vec());
        }
        files.into_iter()
    }

    /// Directories of `LD_LIBRARY_PATH`.
    pub(super) fn library_dirs(&self) -> impl Iterator<Item = &[u8]> {
        self.library_path.split([':', ';']).filter(|dir| !dir.is_empty()).take(MAX_DIRS).map(str::as_bytes)
    }

    /// Directories of `PYTHONPATH`.
    pub(super) fn python_dirs(&self) -> impl Iterator<Item = Vec<u8>> {
        let dirs = self.python_path.split(':').filter(|dir| !dir.is_empty()).take(MAX_DIRS);
        dirs.map(|dir| self.path_of(dir))
    }

    /// A path as the command means it: without a leading `/` it begins where the command runs.
    fn path_of(&self, word: &str) -> Vec<u8> {
        if word.starts_with('/') { word.as_bytes().to_vec() } else { format!("{}/{word}", self.work_dir).into_bytes() }
    }

    /// The file of that name where the command runs.
    pub(super) fn beside(&self, word: &str, stack: &Stack) -> Option<Vec<u8>> {
        Some(self.path_of(word)).filter(|path| stack.file(path).is_some())
    }

    /// Names of Python's modules among the words, those that a shell is told included.
    pub(super) fn python_modules(&self) -> Vec<String> {
        python::named(self.words.iter().flat_map(|word| word.split_ascii_whitespace()))
    }

    /// The directory that it runs in.
    pub(super) fn work_dir(&self) -> &[u8] {
        self.work_dir.as_bytes()
    }

    /// The file that a word means: by its path, or as the name of a program.
    pub(super) fn find(&self, word: &str, stack: &Stack) -> Option<Vec<u8>> {
        if word.contains('/') {
            return self.beside(word, stack);
        }
        let dirs = if self.path.is_empty() { DEFAULT_PATH } else { &self.path };
        let mut paths = dirs.split(':').take(MAX_DIRS).map(|dir| format!("{dir}/{word}").into_bytes());
        paths.find(|path| stack.file(path).is_some())
    }
}
