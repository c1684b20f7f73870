//! Tests that cross crates: both binaries together, bad input end to end, the house rules, real hosts.

#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable, and tests ask for their own variables")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]

mod artifacts;
mod bad_input;
mod capture;
mod certificates;
mod clones;
mod container;
mod doctor;
mod documents;
mod geography;
mod hostile;
mod known_failures;
mod ledger;
mod listener;
mod main_job;
mod matrix;
mod metrics;
mod modules;
mod moves;
mod namespaces;
mod packages;
mod pair;
mod policy;
mod provisioning;
mod proxy;
mod queue;
mod receive;
mod reference;
mod restored;
mod rights;
mod store;
mod support;
mod systemd_host;
mod tenants;
mod tidy;
mod tls;
mod unattended;
mod wakeups;
