//! What a script runs: its interpreter, and where that is a shell the programs and files that stand in it word for word.

use std::collections::HashSet;

use super::{Command, Contents, Facts, MAX_WORDS, Stack, part, python};
use crate::units::LayerRange;

/// How much of a script is read.
const SCRIPT_BYTES: u64 = 64 << 10;
/// Shells, whose language is so simple that programs can be told in it.
const SHELLS: [&str; 5] = ["sh", "bash", "dash", "ash", "ksh"];
/// Behind these words a command begins.
const OPENERS: [&str; 19] = [
    "&&", "||", "|", ";", "&", "(", "{", "!", "if", "then", "elif", "else", "while", "until", "do", "exec", "command",
    "nohup", "time",
];

/// What a script refers to. `first_line` is what follows `#!` in its first line.
pub(super) fn facts(
    first_line: &[u8],
    (layer, data): (usize, LayerRange),
    command: &Command,
    contents: &mut dyn Contents,
    stack: &Stack,
) -> Facts {
    let line = String::from_utf8_lossy(first_line);
    let mut words = line.split_ascii_whitespace();
    let Some(mut program) = words.next() else { return Facts::default() };
    let mut files = vec![program.as_bytes().to_vec()];
    // It finds its argument itself.
    if base_name(program) == "env"
        && let Some(named) = words.find(|word| !word.starts_with('-') && !word.contains('='))
    {
        program = named;
        files.extend(command.find(named, stack));
    }
    let mut modules = Vec::new();
    if is_shell(program)
        && let Ok(text) = contents.read(layer, part(data, 0, SCRIPT_BYTES).unwrap_or(data))
    {
        let text = String::from_utf8_lossy(&text);
        files.extend(of_text(&text, command, stack));
        modules = python::named(text.split_ascii_whitespace());
    }
    Facts { files, modules, parts: Vec::new() }
}

/// Whether a program is a shell, by its name.
pub(super) fn is_shell(program: &str) -> bool {
    SHELLS.contains(&base_name(program))
}

/// The files that a shell's text names.
pub(super) fn of_text(text: &str, command: &Command, stack: &Stack) -> Vec<Vec<u8>> {
    let mut seen = HashSet::new();
    let words = commands(text).into_iter().filter(|word| seen.insert(*word));
    let beside = |word: &str| command.beside(word, stack).filter(|_| word.ends_with(".py"));
    words.filter_map(|word| command.find(word, stack).or_else(|| beside(word))).take(MAX_WORDS).collect()
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Words of a shell script that may be programs, and those that may be files by their path. What a variable stands for is
/// not known.
fn commands(script: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in script.lines().map(str::trim_start).filter(|line| !line.starts_with('#')) {
        let mut begins = true;
        for raw in line.split_ascii_whitespace() {
            if OPENERS.contains(&raw) {
                begins = true;
                continue;
            }
            let word = raw.trim_matches(['"', '\'', ';', '(', ')', '&', '|', '`', '<', '>']);
            let is_variable = begins && word.contains('=');
            if (begins || word.contains('/') || word.ends_with(".py"))
                && !is_variable
                && !word.is_empty()
                && !word.contains('$')
            {
                found.push(word);
            }
            begins = is_variable || raw.ends_with([';', '|', '&', '(']);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_paths_are_told_from_other_words() {
        for (script, want) in [
            ("exec nginx -g 'daemon off;'", vec!["nginx"]),
            ("  # exec nope\nA=b C=d tool arg /etc/x.conf", vec!["tool", "/etc/x.conf"]),
            ("if [ \"$1\" = x ]; then\n  find . && exec gosu redis \"$0\" \"$@\"\nfi", vec!["[", "find", "gosu", "fi"]),
            ("a | b; c", vec!["a", "b", "c"]),
            ("python -u main.py --x", vec!["python", "main.py"]),
            ("$bin/postgres -D /data", vec!["/data"]),
            ("out=$(tool)\n(sub)\n", vec!["sub"]),
            ("", vec![]),
        ] {
            assert_eq!(commands(script), want, "{script:?}");
        }
    }
}
