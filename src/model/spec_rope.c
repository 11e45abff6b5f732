/* Rotary positions in a config: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of 4, become
 * one "rope_theta". Whatever turns positions in another way is refused. transformers lets one spelling win where
 * several disagree; here they must agree, and null is no number. */
#include "model/families/families.h"

#include <string.h>

static bool check_type(const json_t *rope, const char *where, Error *e) {
    const char *type, *old;
    if (!family_not_null(rope, (const char *const[]){"type", "rope_type", "rope_theta", NULL}, where, e) ||
        !json_text(rope, "type", "default", &old, where, e) || !json_text(rope, "rope_type", old, &type, where, e))
        return false;
    if (strcmp(type, "default") == 0) return true;
    return fail(e, EXIT_DATA,
                "rope of type \"%s\" is not built, only \"default\" is; %s; use a model without rope scaling",
                text_shown(type).text, where);
}

static bool check_whole_heads(const json_t *object, const char *where, Error *e) {
    double part;
    if (!json_double(object, "partial_rotary_factor", 1, &part, where, e)) return false;
    if (part == 1) return true;
    return fail(e, EXIT_DATA, "\"partial_rotary_factor\" is %g, mop rotates whole heads; %s; use another model", part,
                where);
}

static bool check_object(const json_t *rope, const char *key, const char *where, Error *e) {
    if (!json_is_object(rope)) return fail(e, EXIT_DATA, "\"%s\" must be an object; %s; correct the file", key, where);
    if (json_object_get(rope, "full_attention") || json_object_get(rope, "sliding_attention"))
        return fail(e, EXIT_DATA,
                    "\"%s\" differs by the kind of layer, which mop does not compute; %s; use another model", key,
                    where);
    return check_type(rope, where, e) && check_whole_heads(rope, where, e);
}

/* The object's theta, where it has one, becomes the config's. */
static bool take_theta(json_t *source, const json_t *rope, const char *key, const char *where, Error *e) {
    json_t *theta = json_object_get(rope, "rope_theta");
    const json_t *said = json_object_get(source, "rope_theta");
    if (!theta) return true;
    if (json_is_number(said) && json_number_value(theta) != json_number_value(said))
        return fail(e, EXIT_DATA, "\"rope_theta\" and that in \"%s\" differ; %s; correct the file", key, where);
    json_object_set(source, "rope_theta", theta);
    return true;
}

/* Null and {} say nothing. */
static const json_t *given(const json_t *source, const char *key) {
    const json_t *rope = json_object_get(source, key);
    if (!rope || json_is_null(rope) || (json_is_object(rope) && json_object_size(rope) == 0)) return NULL;
    return rope;
}

bool rope_in_v4_spelling(json_t *source, const char *where, Error *e) {
    const json_t *scaling = given(source, "rope_scaling"), *parameters = given(source, "rope_parameters");
    const char *key = scaling ? "rope_scaling" : "rope_parameters";
    const json_t *rope = scaling ? scaling : parameters;
    if (scaling && parameters)
        return fail(e, EXIT_DATA, "\"rope_scaling\" and \"rope_parameters\" are both given; %s; keep one", where);
    if (!check_whole_heads(source, where, e)) return false;
    if (rope && (!check_object(rope, key, where, e) || !take_theta(source, rope, key, where, e))) return false;
    json_object_del(source, "rope_scaling");
    json_object_del(source, "rope_parameters");
    return family_not_null(source, (const char *const[]){"rope_theta", NULL}, where, e);
}
