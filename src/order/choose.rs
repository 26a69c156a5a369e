//! Which of an image's load orders a start uses.

/// What decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// None is used.
    Off,
    /// The one that was recorded last.
    Newest,
    /// The last one with this label.
    Label(String),
    /// The last one whose command is the image's.
    Entrypoint,
}

/// What is known of an order before it is read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Candidate {
    /// Its label.
    pub label: String,
    /// The command that was recorded; empty where none is known.
    pub entrypoint: Vec<String>,
    /// When it was recorded, in milliseconds since 1970.
    pub created_at_ms: u64,
}

/// The place of the one that is used; of two that were made at the same time the first. `entrypoint` is the image's command.
#[must_use]
pub fn choose(candidates: &[Candidate], choice: &Choice, entrypoint: &[String]) -> Option<usize> {
    let fits = |candidate: &Candidate| match choice {
        Choice::Off => false,
        Choice::Newest => true,
        Choice::Label(label) => candidate.label == *label,
        Choice::Entrypoint => !entrypoint.is_empty() && candidate.entrypoint == entrypoint,
    };
    let fitting = candidates.iter().enumerate().filter(|(_, candidate)| fits(candidate));
    fitting.min_by_key(|(_, candidate)| std::cmp::Reverse(candidate.created_at_ms)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_decides() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let candidate = |label: &str, command: &str, created_at_ms| Candidate {
            label: label.to_owned(),
            entrypoint: words(command),
            created_at_ms,
        };
        let all = [
            candidate("web", "/app serve", 5),
            candidate("job", "/app job", 9),
            candidate("web", "/app serve -v", 7),
            candidate("web", "/app other", 7),
        ];
        let label = |text: &str| Choice::Label(text.to_owned());
        for (choice, command, want) in [
            (Choice::Off, "/app serve", None),
            (Choice::Newest, "", Some(1)),
            (label("web"), "", Some(2)),
            (label("none"), "", None),
            (Choice::Entrypoint, "/app serve", Some(0)),
            (Choice::Entrypoint, "/bin/sh", None),
        ] {
            assert_eq!(choose(&all, &choice, &words(command)), want, "{choice:?} {command}");
        }
        assert_eq!(choose(&all, &Choice::Entrypoint, &[]), None);
        assert_eq!(choose(&[], &Choice::Newest, &[]), None);
    }
}
