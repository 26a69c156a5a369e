//! The header `WWW-Authenticate` (RFC 9110, section 11.6.1).

/// One way in that a server offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Challenge {
    /// User and password in every request.
    Basic,
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The best challenge of all header lines: a token before a password; schemes that we do not speak are left out.
pub(super) fn best<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.flat_map(parse).collect();
    all.iter().find(|c| matches!(c, Challenge::Bearer { .. })).or_else(|| all.first()).cloned()
}

/// A header line is a list of schemes, each followed by a list of `key=value`, all of them separated by commas: a word
/// that no `=` follows begins a new scheme.
fn parse(line: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let trimmed = after.trim_start_matches([' ', '\t']);
        if let Some(value) = trimmed.strip_prefix('=') {
            let (value, after) = value_of(value.trim_start_matches([' ', '\t']));
            if let Some((_, parameters)) = found.last_mut() {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = after;
        } else {
            found.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
    }
    let challenge = |(scheme, parameters): (String, Vec<(String, String)>)| {
        let get = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
        match scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
            _ => None,
        }
    };
    found.into_iter().filter_map(challenge).collect()
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    #[test]
    fn challenges_of_real_registries() {
        for (line, want) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                Some(bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull"))),
            ),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            (
                r#"Basic realm="x", Bearer realm="https://t",scope="a,b c""#,
                Some(bearer("https://t", None, Some("a,b c"))),
            ),
            (r#"bearer realm=https://t/x , service = "a \" b""#, Some(bearer("https://t/x", Some("a \" b"), None))),
            ("Negotiate, Basic", Some(Challenge::Basic)),
            ("Negotiate abc==", None),
            (r#"Bearer service="no realm""#, None),
            ("", None),
            (r#"Bearer realm="unclosed"#, Some(bearer("unclosed", None, None))),
        ] {
            assert_eq!(best([line].into_iter()), want, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends(line in "[ a-zA-Z=,\\\\\"]{0,64}|.{0,64}") {
            prop_assert!(parse(&line).len() <= line.len());
        }
    }
}
