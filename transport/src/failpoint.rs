//! Failpoints: named points where a test kills the agent as SIGKILL does. They exist only with the feature `failpoints`, which
//! only tests use: `read`, `batch`, `seal`, `commit`, `committed`, `post`, `landed`, `deleted`, in the order in which a record
//! passes them. `VEDETTE_FAILPOINT=commit:3` kills at the third pass of `commit`.

#[cfg(feature = "failpoints")]
static ARMED: std::sync::OnceLock<Option<(String, std::sync::atomic::AtomicI64)>> = std::sync::OnceLock::new();

/// Marks a failpoint.
#[cfg(feature = "failpoints")]
pub(crate) fn reached(name: &str) {
    #[expect(clippy::disallowed_methods, reason = "no release build has this")]
    let armed = ARMED.get_or_init(|| {
        let selected = std::env::var("VEDETTE_FAILPOINT").ok()?;
        let (point, nth) = selected.split_once(':')?;
        Some((point.to_owned(), nth.parse::<i64>().ok()?.into()))
    });
    if let Some((point, left)) = armed
        && point == name
        && left.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1
    {
        vedette_platform::kill_self();
    }
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn reached(_name: &str) {}
