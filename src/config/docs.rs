//! What is written about settings in their structs' documentation, at run time: the file of defaults is made of it.

/// A setting, and what is written about it.
pub(super) struct Field {
    /// Its name in the file.
    pub(super) name: &'static str,
    /// The lines of its documentation, each with the blank that stands before it.
    pub(super) lines: &'static [&'static str],
}

/// A struct of settings.
pub(super) trait Documented {
    /// Its settings in their order.
    const FIELDS: &'static [Field];
}

/// Defines a struct of settings that also knows what is written about its fields.
macro_rules! documented {
    (
        $(#[doc = $about:literal])+
        #[derive($($derive:ident),*)]
        #[serde($($serde:tt)*)]
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[serde($($of_field:tt)*)])?
                pub $field:ident: $kind:ty,
            )*
        }
    ) => {
        $(#[doc = $about])+
        #[derive($($derive),*)]
        #[serde($($serde)*)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                $(#[serde($($of_field)*)])?
                pub $field: $kind,
            )*
        }

        impl $crate::config::docs::Documented for $name {
            const FIELDS: &'static [$crate::config::docs::Field] = &[
                $($crate::config::docs::Field { name: stringify!($field), lines: &[$($doc),+] }),*
            ];
        }
    };
}
pub(super) use documented;
