//! The text of a configuration file.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| vedette_agent::fuzzing::configuration(text));
