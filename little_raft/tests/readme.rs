//! The README shows the example that `cargo test` compiles and runs out of the documentation.

/// What stands between these two lines, without what each line begins with.
fn between(text: &str, first: &str, last: &str, comment: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| *line != first).skip(1);
    let inside = lines.take_while(|line| *line != last);
    inside.map(|line| line.strip_prefix(comment).unwrap_or(line).trim_end().to_string()).collect()
}

#[test]
fn the_example_is_the_one_in_the_documentation() {
    let shown = between(include_str!("../../README.md"), "```rust", "```", "");
    let tested = between(include_str!("../src/lib.rs"), "//! ```", "//! ```", "//!");
    let tested: Vec<_> = tested.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    assert_eq!(shown, tested);
    let code = shown.iter().filter(|line| !line.is_empty()).count();
    assert!((10..=40).contains(&code), "{code} lines are not some forty");
}
