//! The ublk frontend against a real kernel. To be run as root where `/dev/ublk-control` exists (`scripts/vm` brings up
//! such kernels); elsewhere every case says that it was skipped.
//!
//! A harness of its own: cases run one after the other, since they count threads and devices of the whole process, and the
//! binary is also the server process that `recovery` kills (`--serve`).

mod cases;
mod image;
mod readers;
mod recovery;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// One line for people.
pub fn say(line: &str) {
    // A closed stderr leaves nothing to do.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "--serve") {
        recovery::serve(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    let cases: &[(&str, fn())] = &[
        ("modes_return_the_right_bytes", cases::modes_return_the_right_bytes),
        ("requests_beyond_the_pool_wait", cases::requests_beyond_the_pool_wait),
        ("a_full_table_falls_back_to_copies", cases::a_full_table_falls_back_to_copies),
        ("sixty_four_devices_take_no_more_threads", cases::sixty_four_devices_take_no_more_threads),
        ("descriptors_do_not_leak_into_children", cases::descriptors_do_not_leak_into_children),
        ("devices_in_use_and_foreign_ones_are_refused", cases::devices_in_use_and_foreign_ones_are_refused),
        ("a_killed_server_is_replaced_without_an_error", recovery::a_killed_server_is_replaced_without_an_error),
        ("readers_survive_one_kill_after_another", recovery::readers_survive_one_kill_after_another),
        ("a_planned_stop_hands_devices_over", recovery::a_planned_stop_hands_devices_over),
        ("leftovers_are_removed", recovery::leftovers_are_removed),
        ("erofs_mounts_and_reads", cases::erofs_mounts_and_reads),
    ];
    if arguments.iter().any(|a| a == "--list") {
        let names: String = cases.iter().map(|(name, _)| format!("{name}: test\n")).collect();
        return if std::io::stdout().write_all(names.as_bytes()).is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let exact = arguments.iter().any(|a| a == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let mut failed = 0;
    for (name, case) in cases {
        if !filters.is_empty() && !filters.iter().any(|f| if exact { name == f } else { name.contains(f.as_str()) }) {
            continue;
        }
        if !Path::new(sociblk::sys::ublk::CONTROL_PATH).exists()
            && sociblk::frontend::ublk::UblkFrontend::probe().is_err()
        {
            say(&format!("SKIPPED: {name}: no ublk driver here; scripts/vm brings up a kernel that has it"));
            continue;
        }
        let passed = std::panic::catch_unwind(case).is_ok();
        if !passed {
            failed += 1;
            cases::clean();
        }
        say(&format!("test {name} ... {}", if passed { "ok" } else { "FAILED" }));
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
