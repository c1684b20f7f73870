//! Accepts times without seconds, `'2026-11-26 12:30'`, where text is compared with a time.

use datafusion::{
    arrow::datatypes::DataType,
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TreeNode},
    },
    error::Result,
    logical_expr::{Cast, Expr, LogicalPlan},
    optimizer::AnalyzerRule,
    scalar::ScalarValue,
};

/// Adds the seconds.
#[derive(Debug)]
pub(crate) struct Minutes;

impl AnalyzerRule for Minutes {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let whole = |expr: Expr| expr.transform(with_seconds);
        let done = plan.transform_up_with_subqueries(|plan| plan.map_expressions(whole))?;
        Ok(done.data)
    }

    fn name(&self) -> &'static str {
        "minutes"
    }
}

fn with_seconds(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::Cast(cast) = &expr else { return Ok(Transformed::no(expr)) };
    let (DataType::Timestamp(..), Expr::Literal(ScalarValue::Utf8(Some(text)), metadata)) =
        (cast.field.data_type(), cast.expr.as_ref())
    else {
        return Ok(Transformed::no(expr));
    };
    // `YYYY-MM-DD hh:mm`
    let is_digit = |at: usize| text.as_bytes()[at].is_ascii_digit();
    if text.len() != 16 || !text.is_ascii() || text.as_bytes()[13] != b':' || !is_digit(14) || !is_digit(15) {
        return Ok(Transformed::no(expr));
    }
    let whole = Expr::Literal(ScalarValue::Utf8(Some(format!("{text}:00"))), metadata.clone());
    Ok(Transformed::yes(Expr::Cast(Cast { expr: Box::new(whole), ..cast.clone() })))
}
