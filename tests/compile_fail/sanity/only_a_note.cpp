// verdict: no error says: the_declaration_that_a_note_names
// expect: the_declaration_that_a_note_names
#ifdef TERSE_EXPECT_FAIL
template <class T>
concept the_declaration_that_a_note_names = sizeof(T) == 2;
template <the_declaration_that_a_note_names T>
void f(T) {}
void g() { f('c'); }
#endif
