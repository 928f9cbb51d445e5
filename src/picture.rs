//! Pictures for people: overlays, legends, comparison sheets, curves.
