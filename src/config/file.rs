//! Settings as a file that explains itself.

use std::fmt::Write;

use toml::{Table, Value};

use super::docs::{Documented, Field};
use super::{
    Builder, Cache, Config, Credentials, Fill, Fuse, Index, LoadOrder, Mirror, Registry, Resolver, Snapshotter, Ublk,
};

const HEAD: &str = "\
# Settings of sociblk. A line that begins with # and no blank is a setting that has its default: take the # away to change
# it. Unknown settings are errors. Sizes are numbers of bytes or texts such as \"20GiB\" (powers of 1024). The settings are
# read when a daemon starts; `sociblk config check` says what is wrong with this file.
";

/// By section, in the order of [`Config::FIELDS`].
const SECTIONS: [&[Field]; 11] = [
    Registry::FIELDS,
    Resolver::FIELDS,
    Cache::FIELDS,
    Fill::FIELDS,
    Ublk::FIELDS,
    Fuse::FIELDS,
    Index::FIELDS,
    LoadOrder::FIELDS,
    Builder::FIELDS,
    Snapshotter::FIELDS,
    Credentials::FIELDS,
];

/// Settings that have no value unless somebody gives them one, and what it could be.
const EXAMPLES: [(&str, &str); 2] =
    [("builder.token_file", "/etc/sociblk/token"), ("builder.registry", "registry.example:5000")];

pub(super) fn commented(config: &Config) -> Result<String, toml::ser::Error> {
    let defaults = Table::try_from(Config::default())?;
    let values = Table::try_from(config)?;
    let mut text = HEAD.to_owned();
    for (section, fields) in Config::FIELDS.iter().zip(SECTIONS) {
        text.push('\n');
        explain(&mut text, section);
        let _ = writeln!(text, "[{}]", section.name);
        for field in fields {
            let of = |table: &Table| table.get(section.name).and_then(|s| s.get(field.name)).cloned();
            match of(&values) {
                Some(Value::Table(hosts)) => mirrors(&mut text, field, &hosts),
                value => {
                    explain(&mut text, field);
                    let mark = if value == of(&defaults) { "#" } else { "" };
                    let name = format!("{}.{}", section.name, field.name);
                    let example =
                        || EXAMPLES.iter().find(|(key, _)| *key == name).map(|(_, example)| (*example).into());
                    if let Some(value) = value.or_else(example) {
                        let _ = writeln!(text, "{mark}{} = {value}", field.name);
                    }
                }
            }
        }
    }
    Ok(text)
}

fn explain(text: &mut String, field: &Field) {
    for line in field.lines {
        let _ = writeln!(text, "#{line}");
    }
}

/// The tables of mirrors; one that is commented out when there is none.
fn mirrors(text: &mut String, field: &Field, hosts: &Table) {
    explain(text, field);
    for field in Mirror::FIELDS {
        for (number, line) in field.lines.iter().enumerate() {
            let name = if number == 0 { format!(" {}:", field.name) } else { String::new() };
            let _ = writeln!(text, "#  {name}{line}");
        }
    }
    if hosts.is_empty() {
        text.push_str("#[[resolver.host.\"docker.io\".mirrors]]\n#host = \"mirror.example:5000\"\n");
    }
    for (registry, host) in hosts {
        let registry = Value::String(registry.clone());
        for mirror in host.get("mirrors").and_then(Value::as_array).into_iter().flatten() {
            let _ = writeln!(text, "[[resolver.host.{registry}.mirrors]]");
            for (key, value) in mirror.as_table().into_iter().flatten() {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
    }
}
